"""Avalanche's own parts, made fast, and its classifiers beside ours."""
