"""Several layers of a backbone as its features."""
