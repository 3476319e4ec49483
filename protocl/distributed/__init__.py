"""Several processes that work on one thing: what they say to each other."""
