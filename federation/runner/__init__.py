"""Federations in one process or under Ray, beside all samples in one place."""
