"""Tensors in plain functions; each fast form stands beside its readable reference."""
