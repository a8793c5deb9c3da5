"""Paired timings against the peers."""
