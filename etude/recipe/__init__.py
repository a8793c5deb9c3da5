"""Descriptions of training: stages and their parts, YAML, overrides, cost. No torch."""
