"""Grids: how the server reaches its clients. Each is a Flower `Grid`; one per file."""
