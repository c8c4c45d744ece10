"""FedAvg over plain arrays as Flower's documentation writes it; sites add 1 to every number."""

import time
from pathlib import Path

import numpy as np

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Add 1."""
    (arrays,) = message.content.array_records.values()
    better = ArrayRecord([array + np.float32(1) for array in arrays.to_numpy_ndarrays()])
    counts = MetricRecord({"num-examples": 8, "loss": 0.5})
    return Message(RecordDict({"arrays": better, "metrics": counts}), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Read the arrays and give a score."""
    (arrays,) = message.content.array_records.values()
    arrays.to_numpy_ndarrays()
    scores = MetricRecord({"num-examples": 4, "dice": 0.5})
    return Message(RecordDict({"metrics": scores}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """So many rounds of FedAvg; note when each ended."""
    config = context.run_config
    left, parts = int(config["numbers"]), []
    while left > 0:
        parts.append(np.zeros(min(left, 1_000_000), np.float32))
        left -= 1_000_000
    file = Path(str(config["times"]))

    def note(round_: int, arrays: ArrayRecord) -> None:
        with file.open("a") as out:
            out.write(f"{round_} {time.time()}\n")

    FedAvg(min_available_nodes=2).start(
        grid, ArrayRecord(parts), int(config["rounds"]), evaluate_fn=note
    )
