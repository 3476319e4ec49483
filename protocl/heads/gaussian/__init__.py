"""A linear layer trained on samples that are drawn from the classes' Gaussians."""
