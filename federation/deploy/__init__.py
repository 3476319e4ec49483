"""A federation of real machines: files for SuperLink and SuperNodes, and the apps behind them."""
