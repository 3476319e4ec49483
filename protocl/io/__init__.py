"""Files that are whole or absent, checkpoints, and where a result comes from."""
