"""A finished model, packed for those who use it."""
