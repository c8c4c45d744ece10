"""How much a command prints: only results and errors, the usual, or every event of its log too.

The choice is one for the whole process. The command makes it before its work begins.
"""

QUIET, USUAL, VERBOSE = -1, 0, 1

_level = USUAL


def set_level(level: int) -> None:
    """Choose QUIET, USUAL or VERBOSE."""
    global _level
    _level = level


def quiet() -> bool:
    """Whether only results and errors are printed."""
    return _level == QUIET


def verbose() -> bool:
    """Whether every event of the log is printed."""
    return _level == VERBOSE
