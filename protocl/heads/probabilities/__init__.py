"""Probabilities from scores: an opinion, formed from the statistics or from samples left out."""
