"""Runs that discover categories on a data set, by the protocol of the literature."""
