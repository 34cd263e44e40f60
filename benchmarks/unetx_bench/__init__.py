"""Measurement of latency and accuracy drift on the device at hand."""
