"""Measured claims: each a script, its result beside it, the table in docs that it makes."""
