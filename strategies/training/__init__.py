"""What methods share that train the backbone by losses on its features."""
