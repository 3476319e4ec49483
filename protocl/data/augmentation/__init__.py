"""Changes to training images that keep their class."""
