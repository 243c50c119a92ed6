"""What `hdap watch` is made of: when what is due, who is left out, who watches, what it says."""
