"""The views, and what opens on top of them."""
