"""One run by several processes, as ``torchrun`` starts them."""
