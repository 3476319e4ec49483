"""Differential privacy of statistics: vectors, noise, its price, and the release."""
