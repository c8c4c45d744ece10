"""What would go wrong, before the site joins."""
