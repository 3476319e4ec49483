"""Merging when some clients may lie."""
