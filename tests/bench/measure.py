"""Shared by the benchmarks: a clock, two calls in turns, peak memory, and a table on disk."""

import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

FOLDER = Path("figures/bench")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def timed(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of a call."""
    synchronize = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    synchronize()
    start = clock()
    call()
    synchronize()
    return clock() - start


def beside(first: Callable, second: Callable, repeats: int, **options) -> tuple[float, float, float]:
    """Run two calls in turns, once before the clock starts. Return the median seconds of each and the median of second / first."""
    turns = [(timed(first, **options), timed(second, **options)) for _ in range(1 + repeats)][1:]
    one, other = (statistics.median(column) for column in zip(*turns, strict=True))
    return one, other, statistics.median(b / a for a, b in turns)


def row(what: str, unit: str, dtviz: float, instead: float, ratio: float | None = None) -> dict:
    """Return a row of the table of ratios: above 1, dtviz takes less."""
    return {"what": what, "unit": unit, "dtviz": dtviz, "instead": instead, "ratio": ratio or instead / dtviz}


def compare(what: str, dtviz: Callable, instead: Callable, repeats: int = 3) -> dict:
    """Return the row of two calls in turns."""
    return row(what, "s", *beside(dtviz, instead, repeats))


def peak() -> float:
    """Return the peak memory of this process, or of its tensors on an accelerator, in GiB."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status").read_text()  # getrusage would start with the parent's peak
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def publish(rows: list[dict], name: str, *, write: bool = True) -> None:
    """Print a table, and write figures/bench/<name>.csv."""
    table = pd.DataFrame(rows)
    if write:
        FOLDER.mkdir(parents=True, exist_ok=True)
        table.to_csv(FOLDER / f"{name}.csv", index=False, float_format="%.6g")
    print(table.to_string(index=False, na_rep=""))
