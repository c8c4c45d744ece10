"""What every benchmark writes: one JSON of both sides, and its table in docs/performance.md."""

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
    """results/NAME.json, and the table between its markers.

    before: what `machine` said as the benchmark began. command: what makes the file, if that is
    not `python -m benchmarks.bench_NAME`. quick: print the table alone, for it measured too little.
    """
    file = HERE / "results" / f"{name}.json"
    command = command or f"python -m benchmarks.bench_{name}"
    where = {"machine": before, "load_after": os.getloadavg()[0]}
    result = {"name": name, "command": command, **where, "rows": rows}
    lines = [f"`{command}` on {before} (at the end {os.getloadavg()[0]:.1f}):", ""]
    lines += ["| what | ours | theirs | ratio | goal | spread of ours | memory, ours and theirs |"]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [_line(found) for found in rows]
    print("\n".join(lines), flush=True)
    if not quick:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n")
        put_table(name, lines)
        put_table("overview", _overview())


def put_table(name: str, lines: Sequence[str]) -> None:
    """Put these lines between NAME's markers in docs/performance.md."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = PAGE.read_text()
    if begin not in page:
        page += f"\n## {name.capitalize()}\n\n{begin}\n{end}\n"
    head, rest = page.split(begin)
    PAGE.write_text(f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.split(end)[1]}")


def _overview() -> list[str]:
    """Every row that has a goal, of all results."""
    lines = ["| what | ours | theirs | ratio | goal | met |", "|---|---|---|---|---|---|"]
    for file in sorted((HERE / "results").glob("*.json")):
        for found in json.loads(file.read_text()).get("rows", []):
            if found.get("goal") is None or found.get("ratio") is None:
                continue
            unit, met = found["unit"], "yes" if found["ratio"] >= found["goal"] else "no"
            lines.append(
                f"| {found['name']} | {_number(found['ours'], unit)} "
                f"| {_number(found['theirs'], unit)} | {_number(found['ratio'])} "
                f"| {_number(found['goal'])} | {met} |"
            )
    return lines


def _number(value: float | None, unit: str = "") -> str:
    # Three digits, but no exponent for thousands.
    if value is None:
        return "-"
    return f"{value:.0f} {unit}".strip() if abs(value) >= 1000 else f"{value:.3g} {unit}".strip()


def _line(found: dict[str, Any]) -> str:
    unit, low_high = found["unit"], found["spread"]["ours"]
    memory = " / ".join(_number(found["memory_mb"][side], "MB") for side in ("ours", "theirs"))
    what = found["name"] + (f" ({found['note']})" if found["note"] else "")
    return (
        f"| {what} | {_number(found['ours'], unit)} | {_number(found['theirs'], unit)} "
        f"| {_number(found['ratio'])} | {_number(found['goal'])} "
        f"| {_number(low_high[0])} to {_number(low_high[1])} | {memory} |"
    )
