"""Take the pictures of the docs from real pages.

    .venv/bin/python docs/make_screenshots.py report demo/run/report.html
    .venv/bin/python docs/make_screenshots.py first-day [FOLDER]

The first photographs a report. The second follows docs/first-day.md word for word in an empty
folder: every `$` line of the page is run as it stands there, and the pages are photographed as
they are served. What came back goes to FOLDER/transcript.txt; a folder that is not given is
temporary. Run it in the environment that knowmine is installed in.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from PIL import Image, ImageOps
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
PICTURES = HERE / "images"
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
STAYING = ("knowmine-server run", "knowmine-client run")
PATIENCE_S = 1800
CASE = 9
"""Cases that are passed by before the picture of a review: far enough for a good one."""


def main() -> None:
    """Write report.png, or status.png, review.png and predict.png."""
    what, *where = sys.argv[1:] or [""]
    if what not in ("report", "first-day") or (what == "report" and len(where) != 1):
        sys.exit(__doc__)
    with ExitStack() as stack:
        driver = stack.enter_context(sync_playwright())
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        if what == "report":
            photograph_report(browser, Path(where[0]))
            return
        temporary = tempfile.TemporaryDirectory()
        stack.callback(temporary.cleanup)
        folder = Path(where[0] if where else temporary.name)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            sys.exit(f"{folder} is not empty: name a new folder")
        Tour(folder, browser).follow(commands())
    print(f"status.png, review.png and predict.png are in {PICTURES}")


def photograph_report(browser: Browser, file: Path) -> None:
    """The upper part of a report, down to what judging was worth."""
    page = browser.new_page(viewport={"width": 1280, "height": 2140}, device_scale_factor=1.25)
    page.goto(file.absolute().as_uri())
    page.screenshot(path=PICTURES / "report.png")


def commands() -> Iterator[str]:
    """The page's `$` lines."""
    for block in BLOCK.findall((HERE / "first-day.md").read_text(encoding="utf-8")):
        lines = block.replace("\\\n", " ").splitlines()
        yield from (line[2:] for line in lines if line.startswith("$ "))


class Tour:
    """What a person does who follows the page, with a camera."""

    def __init__(self, folder: Path, browser: Browser) -> None:
        self._folder, self._browser = folder, browser
        self._transcript = (folder / "transcript.txt").open("w", encoding="utf-8")
        self._staying: list[subprocess.Popen[str]] = []
        own = f"{os.environ['PATH']}{os.pathsep}{Path(sys.executable).parent}"
        self._environment = {**os.environ, "PATH": own, "PYTHONUNBUFFERED": "1"}

    def follow(self, lines: Iterator[str]) -> None:
        """Run every line; those that stay run on behind the others."""
        try:
            for line in lines:
                print("$", line, flush=True)
                if line.startswith(STAYING):
                    self._staying.append(self._start(line))
                elif "status" in line:
                    self._watch(line)
                elif "review" in line:
                    self._review(line)
                else:
                    self._run(line)
            self._montage()
        finally:
            for command in self._staying:
                command.terminate()

    def _run(self, line: str) -> None:
        command = self._start(line)
        output, _ = command.communicate(timeout=PATIENCE_S)
        self._transcript.write(f"$ {line}\n{output}\n")
        self._transcript.flush()
        if command.returncode:
            raise SystemExit(f"`{line}` ended with {command.returncode}:\n{output}")

    def _watch(self, line: str) -> None:
        """The coordinator's page while the third round is under way; then the run's end."""
        server = self._start(line)
        try:
            page = self._window("http://127.0.0.1:8738/")
            page.get_by_text("3 / 3").wait_for(timeout=PATIENCE_S * 1000)
            page.screenshot(path=PICTURES / "status.png", full_page=True)
            page.close()
        finally:
            server.terminate()
        for command in self._staying:
            output, _ = command.communicate(timeout=PATIENCE_S)
            self._transcript.write(f"$ {shlex.join(map(str, command.args))}\n{output}\n")  # type: ignore[arg-type]  # we gave a list
        self._staying.clear()

    def _review(self, line: str) -> None:
        """A case in the middle of the list, with all masks."""
        server = self._start(f"{line} --no-browser")
        assert server.stdout
        try:
            url = next(
                found.group() for said in server.stdout if (found := re.search(r"http://\S+", said))
            )
            page = self._window(url)
            page.locator("body[data-shown]").wait_for(timeout=60_000)
            page.keyboard.press("a")
            page.locator('#saved[data-waiting="0"]').wait_for()
            for _ in range(CASE):
                page.keyboard.press("n")
                page.wait_for_timeout(400)
            page.keyboard.press("4")
            page.wait_for_timeout(400)
            page.screenshot(path=PICTURES / "review.png")
            page.close()
        finally:
            server.terminate()

    def _montage(self) -> None:
        """Three of the overlays side by side."""
        side, gap = 400, 8
        strip = Image.new("RGB", (3 * side + 2 * gap, side), "white")
        for i, file in enumerate(sorted((self._folder / "masks/overlays").iterdir())[:3]):
            strip.paste(ImageOps.fit(Image.open(file), (side, side)), (i * (side + gap), 0))
        strip.save(PICTURES / "predict.png")

    def _window(self, url: str) -> Page:
        context = self._browser.new_context(
            viewport={"width": 1280, "height": 800}, device_scale_factor=1.5
        )
        page = context.new_page()
        for _ in range(100):
            try:
                page.goto(url)
                break
            except Exception:  # noqa: BLE001 - Playwright's own; the server is not up yet
                time.sleep(0.3)
        return page

    def _start(self, line: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            shlex.split(line),
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


if __name__ == "__main__":
    main()
