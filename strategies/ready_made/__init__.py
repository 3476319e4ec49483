"""Avalanche strategies made of nothing but settings of other modules."""
