"""The hospital's images and masks: read, matched, divided, scored."""
