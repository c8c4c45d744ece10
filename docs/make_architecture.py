"""Write docs/architecture.md and its picture: what each package promises, and which imports which.

.venv/bin/python docs/make_architecture.py

An arrow points from a package to one that it imports. An arrow is left out if a chain of other arrows
says the same.
"""

import ast
import itertools
import re
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = Path(__file__).with_name("images") / "architecture.svg"
PAGE = Path(__file__).with_name("architecture.md")
SIDES = {
    "client": "sees images",
    "server": "sees weights, counts and means",
    "deploy": "ways to run it",
}
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 104, 34, 18, 40, 26

Graph = dict[str, set[str]]


def packages(side: str) -> list[str]:
    """The packages of a side."""
    return sorted(path.parent.name for path in (ROOT / side).glob("*/__init__.py"))


def promise(side: str, package: str) -> str:
    """The one line in which a package says what it promises."""
    tree = ast.parse((ROOT / side / package / "__init__.py").read_text(encoding="utf-8"))
    return ast.get_docstring(tree) or ""


def imports(side: str) -> Graph:
    """Each package of a side, with the packages of the same side that it imports."""
    names = packages(side)
    graph: Graph = {name: set() for name in names}
    pattern = re.compile(rf"^\s*(?:from|import) knowmine\.{side}\.(\w+)", re.MULTILINE)
    for name, other in itertools.product(names, names):
        for path in (ROOT / side / name).glob("*.py"):
            if name != other and other in pattern.findall(path.read_text(encoding="utf-8")):
                graph[name].add(other)
    return graph


def reached(graph: Graph, start: str) -> set[str]:
    """All packages that `start` imports, directly or through others."""
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def reduced(graph: Graph) -> Graph:
    """The graph without arrows that a chain of others implies."""
    return {
        name: {to for to in own if not any(to in reached(graph, via) for via in own - {to})}
        for name, own in graph.items()
    }


def levels(graph: Graph) -> list[list[str]]:
    """The packages in rows, each right below the lowest package that imports it."""
    depth: dict[str, int] = {}

    def deep(name: str) -> int:
        if name not in depth:
            importers = [other for other, own in graph.items() if name in own]
            depth[name] = 1 + max((deep(other) for other in importers), default=-1)
        return depth[name]

    rows: dict[int, list[str]] = {}
    for name in sorted(graph):
        rows.setdefault(deep(name), []).append(name)
    return [rows[level] for level in sorted(rows)]


def drawn(side: str, left: float, top: float) -> tuple[list[str], float, float]:
    """A side's boxes and arrows, and the width and height that they take."""
    graph = reduced(imports(side))
    rows = levels(graph)
    width = max(len(row) for row in rows) * (WIDTH + GAP_X) - GAP_X
    places: dict[str, tuple[float, float]] = {}
    shapes = []
    for level, row in enumerate(rows):
        taken = len(row) * (WIDTH + GAP_X) - GAP_X
        for i, name in enumerate(row):
            x = left + (width - taken) / 2 + i * (WIDTH + GAP_X)
            places[name] = x, top + 30 + level * (HEIGHT + GAP_Y)
    for name, own in sorted(graph.items()):
        for to in sorted(own):
            (x0, y0), (x1, y1) = places[name], places[to]
            x0, y0, x1 = x0 + WIDTH / 2, y0 + HEIGHT, x1 + WIDTH / 2
            bend = GAP_Y / 2
            way = f"M{x0:.0f} {y0:.0f} C{x0:.0f} {y0 + bend:.0f} "
            if y1 - y0 > GAP_Y + 1:  # past other rows: beside the boxes
                side_x = left - MARGIN / 2
                way += (
                    f"{side_x:.0f} {y0 + bend:.0f} {side_x:.0f} {y0 + GAP_Y:.0f} "
                    f"L{side_x:.0f} {y1 - GAP_Y:.0f} C{side_x:.0f} {y1 - bend:.0f} "
                )
            way += f"{x1:.0f} {y1 - bend:.0f} {x1:.0f} {y1:.0f}"
            shapes.append(f'<path class="line" d="{way}" marker-end="url(#tip)"/>')
    for name, (x, y) in places.items():
        start = " start" if promise(side, name).startswith("START HERE") else ""
        shapes.append(
            f'<g class="box{start}"><title>{escape(promise(side, name))}</title>'
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
            f'<text x="{x + WIDTH / 2:.0f}" y="{y + 22:.0f}">{name}/</text></g>'
        )
    height = 30 + len(rows) * (HEIGHT + GAP_Y) - GAP_Y
    heading = f'<text class="side" x="{left:.0f}" y="{top + 12:.0f}">{side}/ <tspan class="what">{SIDES[side]}</tspan></text>'
    return [heading, *shapes], width, height


def picture() -> str:
    """The whole diagram."""
    client, client_width, client_height = drawn("client", 2 * MARGIN, MARGIN)
    left = 4 * MARGIN + client_width
    server, server_width, server_height = drawn("server", left, MARGIN)
    deploy, deploy_width, _ = drawn("deploy", left, MARGIN + server_height + 46)
    width = left + max(server_width, deploy_width) + MARGIN
    bottom = MARGIN + client_height + 26
    what = "what both ends agree on: settings, messages, keys, errors"
    shared = [
        (
            f'<g class="box"><rect x="{MARGIN}" y="{bottom:.0f}" width="{width - 2 * MARGIN:.0f}" '
            f'height="{HEIGHT}" rx="7"/><text x="{width / 2:.0f}" y="{bottom + 22:.0f}">shared/ '
            f'<tspan class="what">{what}</tspan></text></g>'
        )
    ]
    style = """
.line{fill:none;stroke:#94a3b8;stroke-width:1.3}
.box rect{fill:#f8fafc;stroke:#64748b} .box.start rect{fill:#ccfbf1;stroke:#0f766e;stroke-width:1.6}
text{font:14px system-ui,sans-serif;fill:#0f172a;text-anchor:middle}
.side{font-weight:600;text-anchor:start} .what{font-weight:400;fill:#475569}
"""
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#94a3b8"/></marker>'
    )
    height = bottom + HEIGHT + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        "<title>The packages of knowmine and what each imports</title>",
        f"<style>{style}</style><defs>{tip}</defs>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        *client,
        *server,
        *deploy,
        *shared,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page around the picture."""
    lines = [HEAD]
    for side in (*SIDES, "shared"):
        lines += [f"\n## {side}/", "| package or file | promise |", "|---|---|"]
        lines += [f"| `{side}/{name}/` | {promise(side, name)} |" for name in packages(side)]
        for path in sorted((ROOT / side).glob("*.py")):
            words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            if path.name != "__init__.py":
                lines.append(f"| `{side}/{path.name}` | {words.splitlines()[0]} |")
    return "\n".join(lines) + "\n"


HEAD = """# Architecture

Four folders, each an import package under `knowmine.`. `client/` and `server/` never import each
other; both import `shared/`; `deploy/` may import all. Within a folder an arrow points from a
package to one that it imports, always downwards; `tests/test_tree.py` holds that order.

![The packages of knowmine; an arrow points from a package to one that it imports](images/architecture.svg)

An arrow is left out if a chain of other arrows says the same. Green packages are where to start
reading: `client/site/round.py`, `server/rounds/rounds.py`, `deploy/simulation/simulate.py`.
This page is written by `docs/make_architecture.py` from the source.

In a hospital a round travels `server/rounds` → `shared/wire` → `client/federation` → `client/vault` →
`client/site` (`data`, `sam`, `mining`, `training`) → `client/egress` → `shared/wire` →
`server/rounds`. A site runs two processes: the vault sees images and has no network, the courier
(`client/federation`, `client/egress`) has the network and never sees images. `client/vault/airlock.proto` lists all that may cross between
them.
"""


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
