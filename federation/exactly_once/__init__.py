"""Each sample exactly once: what server and clients know of numbers, lives and settled messages.

Nothing here knows of Flower, of tensors or of a disk.
"""
