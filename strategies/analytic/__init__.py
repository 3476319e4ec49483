"""Ridge regression over a frozen backbone, under the names by which it was published."""
