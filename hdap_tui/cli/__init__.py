"""The registry as a command line: data on standard output, notes on standard error."""
