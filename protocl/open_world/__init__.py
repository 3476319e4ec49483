"""Open world: what is unknown, which new categories there are, and why a model answers so."""
