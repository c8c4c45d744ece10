"""What is kept at the site, encrypted, and how it is destroyed."""
