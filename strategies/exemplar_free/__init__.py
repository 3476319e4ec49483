"""What NAPA-VQ, PASS and IL2A share: training without a stored sample."""
