"""What is distinct about each system: description, published names, sizes."""
