"""Federations that exchange prototype memories."""
