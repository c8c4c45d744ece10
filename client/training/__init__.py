"""The U-Net++ learns from labels and pseudo-labels."""
