"""Runs: their folders, their sweeps, their results."""
