"""Take the README's picture of a report with headless Chromium.

.venv/bin/python docs/make_screenshot.py demo/run/report.html docs/images/report.png
"""

import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Photograph a local page, 1280 px wide."""
    page, picture = (Path(argument).absolute() for argument in sys.argv[1:3])
    quiet = ["disable-background-networking", "disable-component-update", "disable-sync"]
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += [f"--{flag}" for flag in quiet] + ["--hide-scrollbars"]
        command += [f"--user-data-dir={profile}", "--window-size=1280,1750"]
        command += [f"--screenshot={picture}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
