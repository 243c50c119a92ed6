"""Optimisers, and the HDAP loop that drives them."""
