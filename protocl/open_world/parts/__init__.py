"""Several prototypes a class: rows of a memory that are parts of classes, and a head over them."""
