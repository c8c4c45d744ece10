"""Messages as the bytes that travel."""
