"""Long engine work in a process of its own: start, follow, cancel, resume."""
