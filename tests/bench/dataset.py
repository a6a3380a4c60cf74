"""The dataset job by one process and by two: `make bench` writes figures/bench/dataset.csv.

emoji-dmd, hybrid, 360 images in batches of ten, one thread a process; the processes start with the models loaded (by fork), so
that images a second is what is compared. In turns; the images have to be the same to the bit.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

import dtviz
from dtviz import dataset, prompts

from .measure import publish

FILE = Path(__file__).parents[2] / "data" / "prompts" / "emoji.csv"


def run(pair: dtviz.Pair, rows: list[prompts.Row], processes: int) -> tuple[float, dict[str, bytes]]:
    """Seconds from the start of the first process to the end of the last, and the images."""
    with tempfile.TemporaryDirectory() as out:
        start, children = time.perf_counter(), []
        for rank in range(processes):
            if not (child := os.fork()):
                try:
                    dataset.run(
                        pair, rows, out, settings={"method": "hybrid"}, rank=rank, world=processes, progress=False
                    )
                finally:
                    os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        seconds = time.perf_counter() - start
        assert dataset.count(out) == len(rows)
        made = [one["batch"] for one in dataset.log(out)]
        assert len(made) == len(set(made))
        return seconds, {path.name: path.read_bytes() for path in Path(out, "images").iterdir()}


def main(repeats: int = 3) -> None:
    torch.set_num_threads(1)
    pair, rows = dtviz.load("emoji-dmd", device="cpu"), prompts.read(FILE)
    turns = [[run(pair, rows, processes) for processes in (1, 2)] for _ in range(repeats)]
    assert all(images == turns[0][0][1] for turn in turns for _, images in turn)
    speeds = [[len(rows) / seconds for seconds, _ in turn] for turn in turns]
    one, two = (statistics.median(turn[i] for turn in speeds) for i in range(2))
    publish(
        [
            {
                "what": f"emoji-dmd, hybrid, {len(rows)} images, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
                "unit": "images a second",
                "one process": one,
                "two processes": two,
                "ratio": statistics.median(b / a for a, b in speeds),
            }
        ],
        "dataset",
    )


if __name__ == "__main__":
    main()
