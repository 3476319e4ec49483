"""Messages between server and clients: how they are written, read, counted and distrusted."""
