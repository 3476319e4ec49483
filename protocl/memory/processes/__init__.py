"""A memory that several processes hold parts of."""
