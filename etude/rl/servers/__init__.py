"""MCP servers of our own, started as programs: `python -m etude.rl.servers.desk`."""
