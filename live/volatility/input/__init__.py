"""What goes into Volatility: layers, stackers, symbol tables."""
