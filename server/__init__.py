"""The coordinator's side: it sees weights, counts and means; never an image."""
