"""The same rounds on any Flower federation."""
