"""Objectives as pure functions of tensors: per-token losses, no reduction."""
