"""What the clients of a reconnaissance learn with."""
