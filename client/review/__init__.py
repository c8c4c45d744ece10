"""A person accepts, corrects or rejects pseudo-labels, worst first."""
