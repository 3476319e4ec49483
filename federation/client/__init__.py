"""What runs where the samples are."""
