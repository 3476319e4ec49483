"""What a memory cannot hold, cannot tell apart, or cannot give back."""
