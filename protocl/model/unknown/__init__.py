"""What a classifier counts as unknown: by a probability, or by a calibrated score."""
