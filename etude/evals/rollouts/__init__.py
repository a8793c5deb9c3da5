"""The recorded rollouts of a run as one page that needs nothing but a browser."""
