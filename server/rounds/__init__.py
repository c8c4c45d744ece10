"""The rounds of a run. START HERE: `rounds.py` reads top to bottom."""
