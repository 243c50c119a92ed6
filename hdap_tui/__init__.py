"""Operating a fleet of edge devices from a terminal."""

__version__ = "0.1.0"
