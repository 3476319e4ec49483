"""What an operator of a server sees and does: metrics, a log to read by program, blocked nodes."""
