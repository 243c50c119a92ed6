"""Connections, transfer, host keys and jobs on a device, over paramiko."""
