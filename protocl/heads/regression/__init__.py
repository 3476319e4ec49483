"""Ridge regression from sums: the equations, their solution, and the strength that suits them."""
