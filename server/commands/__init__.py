"""Arguments to settings, outcomes to words."""
