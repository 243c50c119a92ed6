"""What many devices look like to the search."""
