"""Toy scenes for demonstrations and tests: photographs with pasted shapes of known masks; no measure of quality."""
