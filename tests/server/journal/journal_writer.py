"""A process that commits rounds until it is killed: `journal_writer.py FOLDER create|open`."""

import sys
from pathlib import Path

import numpy as np

from knowmine.server.journal.journal import Journal
from knowmine.shared.weights import Array


def weights_of(round_: int) -> dict[str, Array]:
    """Weights that say which round they are of, large enough to be caught half-written."""
    return {"w": np.full(300_000, round_, np.float32), "n": np.array(round_)}


def state_of(round_: int) -> dict[str, Array]:
    """The same for the optimiser."""
    return {"step:w": np.full(1_000, -round_, np.float32)}


def main() -> None:
    """Commit rounds after the last one, saying so, for ever."""
    folder = Path(sys.argv[1])
    journal = Journal.open(folder) if sys.argv[2] == "open" else Journal.create(folder, {"seed": 1})
    print("open", flush=True)
    last = journal.last()
    if last is None:
        journal.commit_initial(weights_of(0))
    round_ = last.round if last else 0
    while True:
        round_ += 1
        journal.commit_round({"round": round_}, weights_of(round_), state_of(round_))
        print(round_, flush=True)


if __name__ == "__main__":
    main()
