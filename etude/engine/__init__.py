"""Batched, cached generation on the same modules that train."""
