"""Signed proof of what left the site."""
