"""Inputs that the pack adds to Volatility: layers, stackers, URL handlers, symbol tables."""
