"""The server's books on disk: one database, one transaction a round, one row a contribution."""
