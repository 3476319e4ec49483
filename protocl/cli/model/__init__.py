"""Commands for a model in use: predict, teach, forget, merge, export, info."""
