"""What both ends of a federation must agree on."""
