"""Batches that become smaller when one does not fit into memory.

for rows, images in batches(lambda rows: decoded(latents[rows]), n=100, size=64):
    out[rows] = images
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size  # here: when memory is out, it is too late to import

T = TypeVar("T")


def batches(work: Callable[[slice], T], *, n: int, size: int, fixed: bool = False) -> Iterator[tuple[slice, T]]:
    """`work(rows)` of every batch of at most `size` of `n` rows, in order, with its rows.

    A batch for which memory is out is halved and tried again, and those after it stay so small. Said once, by a
    warning, when the size that fits is known. `fixed`: not, because a row's result depends on its batch.

    Raises:
        RuntimeError: of `work`: not even one row fits, or the failure is another.

    >>> [(rows.start, rows.stop) for rows, _ in batches(lambda rows: None, n=5, size=2)]
    [(0, 2), (2, 4), (4, 5)]
    """
    start, asked = 0, size
    while start < n:
        rows = slice(start, min(start + size, n))
        try:
            done = work(rows)
        except (RuntimeError, MemoryError) as error:
            if fixed or rows.stop - start == 1 or not out_of_memory(error):
                raise
            size = (rows.stop - start) // 2
            continue  # which lets go of the error, whose frames hold the batch that did not fit
        if size < asked:
            warnings.warn(f"{asked} at a time do not fit into memory: going on with batch_size={size}", stacklevel=3)
            asked = size
        start = rows.stop
        yield rows, done


def out_of_memory(error: BaseException) -> bool:
    """Whether this failure of torch, or of numpy, on any device, is for want of memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error)
