"""Published weight files: name maps, lazy shards, streaming save."""
