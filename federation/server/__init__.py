"""The merged memory on the server: who is asked, what is taken in, what survives a restart."""
