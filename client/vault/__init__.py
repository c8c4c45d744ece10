"""The process that sees the images and has no network, and the one door out of it."""
