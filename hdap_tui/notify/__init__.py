"""Telling others of alerts: a webhook, a command, and what waits for them."""
