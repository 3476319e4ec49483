"""Second moments: which tensors hold them, and the numbers that these are made of."""
