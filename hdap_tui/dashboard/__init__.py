"""The registry of commands as a screen."""
