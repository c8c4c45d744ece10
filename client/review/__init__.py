"""A person corrects pseudo-labels."""
