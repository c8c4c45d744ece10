"""How much a command says: what went wrong, the usual, or every event of its log as well.

One choice for the whole process, made before its work begins.
"""

QUIET, USUAL, VERBOSE = -1, 0, 1

_level = USUAL


def set_level(level: int) -> None:
    """Choose QUIET, USUAL or VERBOSE."""
    global _level
    _level = level


def quiet() -> bool:
    """Whether only results and what went wrong are said."""
    return _level == QUIET


def verbose() -> bool:
    """Whether every event is said."""
    return _level == VERBOSE
