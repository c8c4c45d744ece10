"""Take the pictures of the review and status pages with headless Chromium.

.venv/bin/python docs/make_page_pictures.py http://127.0.0.1:8737/?token=... docs/images/review.png
A third argument names the case to show.
"""

import shutil
import sys

from playwright.sync_api import sync_playwright


def main() -> None:
    """Photograph a page that is being served, 1280 px wide."""
    address, picture, *case = sys.argv[1:]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        page.wait_for_timeout(2500)
        for stem in case:
            page.get_by_role("button", name=stem).click()
            page.wait_for_timeout(1500)
        page.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main()
