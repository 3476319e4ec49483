"""Second moments that were estimated, not summed; marked, and never mixed with exact ones."""
