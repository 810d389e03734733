"""Symbol tables for Volatility, made from the kernel itself and kept."""
