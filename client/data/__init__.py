"""The hospital's images and masks: read them, pair them, split them, score against them."""
