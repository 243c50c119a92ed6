"""What a lab device has on its Python path: the emulation of a slower machine."""
