"""What `hdap watch` is made of: sweeps and rounds, when each is due, and who is left out."""
