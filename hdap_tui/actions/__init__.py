"""What each command of the registry does, for the command line and the dashboard alike."""
