"""A finished model segments new images."""
