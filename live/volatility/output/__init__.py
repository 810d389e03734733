"""What comes out of Volatility: event sources of `linux.pse`, its columns, renderers."""
