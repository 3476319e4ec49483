"""Discovery of new categories among samples without labels, beside those that a memory knows."""
