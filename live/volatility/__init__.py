"""What the Volatility pack is made of: Volatility's layers in, processes and symbol tables out."""
