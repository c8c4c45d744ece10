"""What a run keeps on disk, so that a kill loses at most the round under way."""
