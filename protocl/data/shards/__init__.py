"""Data that do not fit in memory: shards that are read from their beginning to their end."""
