"""Which sites may join, and the certificates of both sides."""
