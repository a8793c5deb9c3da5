"""Held-out measures: bits per byte, accuracy, pass@k, and the report page."""
