"""Devices that are separate machines in all but their processor."""
