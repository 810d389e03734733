"""Outputs that the pack adds to Volatility: event sources and columns of `linux.pse`, renderers."""
