"""The code of the Volatility plugin pack in `volplugins`."""
