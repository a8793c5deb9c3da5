"""Several processes: meshes, sharding, expert counts over ranks."""
