"""Pseudo-labels from SAM and the U-Net++ together."""
