"""Stored samples: which are kept, and for how many classes."""
