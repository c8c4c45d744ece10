"""START HERE: one round at a hospital. `round.py` reads top to bottom."""
