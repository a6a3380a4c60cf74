"""Shared by the benchmarks: a clock, two calls in turns, peak memory, and a table on disk."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def beside(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Run two calls in turns. Return the median seconds of each, and the median ratio of the second to the first."""
    turns = [(timed(first), timed(second)) for _ in range(repeats)]
    one, other = (statistics.median(column) for column in zip(*turns, strict=True))
    return one, other, statistics.median(b / a for a, b in turns)


def peak() -> float:
    """Return the peak memory of this process, or of its tensors on an accelerator, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status").read_text()  # getrusage would start with the parent's peak
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def publish(rows: list[dict], name: str) -> None:
    """Write figures/bench/<name>.csv, and print it."""
    table, folder = pd.DataFrame(rows), Path("figures/bench")
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    print(table.to_string(index=False))
