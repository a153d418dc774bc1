"""Toy scenes for demonstrations and tests: shapes with known masks, pasted over photographs. No measure of quality."""
