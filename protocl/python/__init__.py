"""Runs from Python: the commands' own runner, with values for settings and results as objects."""
