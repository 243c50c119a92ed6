"""Pruning, fine-tuning, quantization and export of a network."""
