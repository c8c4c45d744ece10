"""Copy COVID-QU-Ex's infected images, with infection masks in the place of lung masks.

python -m benchmarks.quality.covid_infection COVID FOLDER
"""

import argparse
import csv
import shutil
from pathlib import Path

from knowmine.shared.errors import DataError


def main() -> None:
    """A data folder like any other: images/, masks/ and index.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("covid", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    with (options.covid / "index.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["class"] == "COVID-19"]
    if not rows:
        raise DataError(f"{options.covid / 'index.csv'} has no row of class COVID-19")
    infected = {row["stem"] for row in rows}
    for source, target in (("images", "images"), ("infection_masks", "masks")):
        (options.folder / target).mkdir(parents=True, exist_ok=True)
        for file in sorted((options.covid / source).iterdir()):
            if file.stem in infected:
                shutil.copyfile(file, options.folder / target / file.name)
    with (options.folder / "index.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} images in {options.folder}")


if __name__ == "__main__":
    main()
