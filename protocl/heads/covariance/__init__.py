"""Covariance of features from sums: its forms, and how it is shrunk."""
