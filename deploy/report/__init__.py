"""A finished run as one page with figures."""
