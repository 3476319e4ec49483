"""Strategies on a backbone that stays, or is adapted by the first experience only."""
