"""Drawn images with known lesions, for demos and tests."""
