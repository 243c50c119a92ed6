"""One SQLite file a fleet; every query is in this package."""
