"""START HERE: many sites on one machine. `simulate.py` reads top to bottom."""
