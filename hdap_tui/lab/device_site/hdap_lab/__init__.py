"""Emulation of a slower device inside a lab device's own Python. Nothing here is a measurement.

The numbers that come out are the host's own times, stretched by what the device's profile asks
for; every place that shows them says "emulated".
"""
