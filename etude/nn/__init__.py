"""Modules: one part per file, a description in, tensors out."""
