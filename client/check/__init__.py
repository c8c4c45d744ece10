"""Find out what would go wrong before the site joins."""
