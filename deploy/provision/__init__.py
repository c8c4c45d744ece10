"""Everything a new federation needs, made in one step."""
