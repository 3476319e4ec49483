"""Trees of servers: an edge merges its clients, and is one client to the root."""
