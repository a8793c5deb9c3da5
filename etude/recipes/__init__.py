"""Shipped recipes: YAML files read by `etude train NAME`."""
