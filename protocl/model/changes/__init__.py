"""Changes of a model in use: recorded before they count, undone, and folded into its folder."""
