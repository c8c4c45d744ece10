"""What every benchmark writes: one JSON of both sides, and its rows in docs/performance.md."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"


def arguments(about: str | None, quick: str) -> argparse.ArgumentParser:
    """A parser that knows `--quick`: `quick` says what is done then; no result is written."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help=f"{quick}; writes nothing")
    return parser


def row(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    unit: str,
    goal: float | None = None,
    *,
    memory_mb: tuple[float | None, float | None] = (None, None),
    note: str = "",
) -> dict[str, Any]:
    """Medians of both sides' repeats; ratio is theirs over ours, above 1 is better for us.

    goal: the least ratio wanted. theirs may be empty where there is nobody to compare with.
    memory_mb: peaks of ours and theirs.
    """
    mine = statistics.median(ours)
    other = statistics.median(theirs) if theirs else None
    return {
        "name": name,
        "ours": mine,
        "theirs": other,
        "unit": unit,
        "ratio": other / mine if other and mine else None,
        "goal": goal,
        "spread": {
            "ours": [min(ours), max(ours)],
            "theirs": [min(theirs), max(theirs)] if theirs else None,
        },
        "memory_mb": {"ours": memory_mb[0], "theirs": memory_mb[1]},
        "note": note,
    }


class Apart:
    """One side of a benchmark in a process of its own: neither's settings or memory touch the other.

    words: a command that calls `serve_turns`. Calling it gives the seconds of one turn; `close`
    the most memory that it held.
    """

    def __init__(self, *words: str) -> None:
        self._words = words
        self._process = subprocess.Popen(
            [sys.executable, "-m", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self) -> float:
        """One turn."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"{' '.join(self._words)} ended: {self._process.wait()}")
        return float(line)

    def close(self) -> float:
        """End it; megabytes."""
        megabytes = peak_mb(self._process.pid)
        self._process.communicate()
        return megabytes


def serve_turns(work: Callable[[], object]) -> None:
    """The other end of `Apart`: time `work` for each line that comes in."""
    for _ in sys.stdin:
        began = time.perf_counter()
        work()
        print(time.perf_counter() - began, flush=True)


def in_turns(
    repeats: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Both sides so many times, in turns, so that a disturbance hits both; each is first as often."""
    mine, other = list[float](), list[float]()
    for turn in range(repeats):
        for side, found in ((ours, mine), (theirs, other))[:: -1 if turn % 2 else 1]:
            found.append(side())
    return mine, other


def machine() -> str:
    """The processor, its cores, and how busy it is now."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    load = os.getloadavg()[0]
    return f"{models[0] if models else 'unknown CPU'}, {os.cpu_count()} cores, load {load:.1f}"


def peak_mb(pid: int) -> float:
    """The most memory that a running process has held, resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    return 0.0


def write(
    name: str,
    rows: list[dict[str, Any]],
    before: str,
    *,
    command: str | None = None,
    quick: bool = False,
) -> None:
    """Print the rows; keep them in results/NAME.json and put all results into the page's tables.

    before: what `machine` said as the benchmark began. command: what makes the file, if that is
    not `python -m benchmarks.bench_NAME`. quick: print only, because too little was measured.
    """
    command = command or f"python -m benchmarks.bench_{name}"
    where = {"machine": before, "load_after": os.getloadavg()[0]}
    print(f"`{command}` on {before} (at the end {os.getloadavg()[0]:.1f}):\n")
    print("\n".join([*COMPARED, *(_line(found, name) for found in rows)]), flush=True)
    if not quick:
        result = {"name": name, "command": command, **where, "rows": rows}
        (HERE / "results" / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        put_tables()


def put_tables() -> None:
    """Put the rows of all results into docs/performance.md: compared ones, then the others."""
    compared, others = list(COMPARED), list(ALONE)
    for file in sorted((HERE / "results").glob("*.json")):
        result = json.loads(file.read_text())
        script = result.get("command", "").removeprefix("python -m benchmarks.")
        for found in result["rows"] if "name" in result and "rows" in result else []:
            if found["theirs"] is not None:
                compared.append(_line(found, script))
            else:
                figure = f"{_number(found['ours'], found['unit'])}{_spread(found)}"
                others.append(f"| {_what(found)} | {figure} | `{script}` |")
    page = PAGE.read_text()
    for name, lines in (("compared", compared), ("alone", others)):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, rest = page.split(begin)
        page = f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.split(end)[1]}"
    PAGE.write_text(page)


COMPARED = (
    "| what | ours | theirs | ratio | goal | met | made by |",
    "|---|---|---|---|---|---|---|",
)
ALONE = ("| what | ours | made by |", "|---|---|---|")


def _line(found: dict[str, Any], script: str) -> str:
    unit, goal, ratio = found["unit"], found["goal"], found["ratio"]
    met = "-" if goal is None or ratio is None else "yes" if ratio >= goal else "no"
    return (
        f"| {_what(found)} | {_number(found['ours'], unit)}{_spread(found)} "
        f"| {_number(found['theirs'], unit)} | {_number(ratio)} | {_number(goal)} | {met} "
        f"| `{script}` |"
    )


def _what(found: dict[str, Any]) -> str:
    return f"{found['name']} ({found['note']})" if found["note"] else str(found["name"])


def _spread(found: dict[str, Any]) -> str:
    low, high = found["spread"]["ours"]
    return "" if low == high else f" ({_number(low)} to {_number(high)})"


def _number(value: float | None, unit: str = "") -> str:
    # Three digits, but no exponent for thousands.
    if value is None:
        return "-"
    return f"{value:.0f} {unit}".strip() if abs(value) >= 1000 else f"{value:.3g} {unit}".strip()
