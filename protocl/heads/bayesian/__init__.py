"""Bayesian prototypes: a posterior over class means, and its predictive distribution."""
