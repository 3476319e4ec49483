"""Continual learning strategies on prototype memories, as Avalanche plugins."""
