"""What may leave the site, and who allows it."""
