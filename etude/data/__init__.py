"""From documents on this machine to batches that resume exactly."""
