"""Secure sums: the server learns the sum of all clients and nothing else."""
