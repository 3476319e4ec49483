"""Few labels, or doubtful ones: inference for all queries together, and cleaning of labels."""
