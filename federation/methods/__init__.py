"""Federated methods by name: settings, server strategy and client of each."""
