"""Golden values: numbers that other implementations gave, with the inputs that give them."""
