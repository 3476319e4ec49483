"""Readers of data that users bring, and of the field's image sets as they are published."""
