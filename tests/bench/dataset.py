"""The dataset job by one process and by two: `make bench` writes figures/bench/dataset.csv.

emoji-dmd, hybrid, 360 images in batches of ten, one thread per process. The processes are forked with the models loaded, so that
only images per second are compared. The two take turns, and the images have to be the same bits.
"""

import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

import dtviz
from dtviz.experiments import dataset
from dtviz.files import ROOT

from ..test_experiments_dataset import forked
from .measure import publish, row


def run(pair: dtviz.Pair, rows: list[dataset.Row], processes: int) -> tuple[float, dict[str, bytes]]:
    """Return the seconds from the start of the first process to the end of the last, and the images."""
    with tempfile.TemporaryDirectory() as out:
        start, options = time.perf_counter(), {"settings": {"method": "hybrid"}, "progress": False}
        work = partial(dataset.generate_images, pair, rows, **options)
        for child in [forked(work, out) for _ in range(processes)]:
            os.waitpid(child, 0)
        seconds = time.perf_counter() - start
        assert dataset.count_images(out) == len(rows)
        return seconds, {path.name: path.read_bytes() for path in Path(out, "images").iterdir()}


def main(repeats: int = 3) -> None:
    torch.set_num_threads(1)
    pair = dtviz.load("emoji-dmd", device="cpu")
    rows = dataset.read_prompts(ROOT / "data" / "prompts" / "emoji.csv")
    turns = [[run(pair, rows, processes) for processes in (1, 2)] for _ in range(repeats)]
    assert all(images == turns[0][0][1] for turn in turns for _, images in turn)
    two, one = (statistics.median(seconds) for seconds in ([turn[i][0] for turn in turns] for i in (1, 0)))
    what = f"emoji-dmd, hybrid, {len(rows)} images, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}: two processes, against one"
    publish([row(what, "s", two, one)], "dataset")


if __name__ == "__main__":
    main()
