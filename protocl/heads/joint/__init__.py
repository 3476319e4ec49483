"""Heads over the statistics of several feature maps at once."""
