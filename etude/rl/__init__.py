"""Reinforcement learning: environments, samplers, rollouts, curricula."""
