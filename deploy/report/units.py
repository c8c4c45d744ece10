"""Write scores, sizes and times for people."""


def score(value: float | None, digits: int = 3) -> str:
    """A number, or a dash if it is missing.

    >>> score(0.81234), score(None)
    ('0.812', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}"


def human_bytes(count: float) -> str:
    """A number of bytes in a suitable unit.

    >>> human_bytes(512), human_bytes(21_300_000)
    ('512 B', '21.3 MB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """A length of time in words.

    >>> duration(8.4), duration(75), duration(7530)
    ('8 s', '1 min 15 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
