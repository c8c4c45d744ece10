"""Which sites may join, and the certificates that they get."""
