"""Statistics of classes seen before, carried along when the backbone moves."""
