"""START HERE: the rounds of a run. `rounds.py` reads top to bottom."""
