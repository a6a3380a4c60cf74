"""Seconds an image takes, from the prompt to the decoded image.

seconds_an_image(pair, {"student": ("distilled", {}), "hybrid": ("hybrid", {"k": 1})}, prompt="dog face")
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from .decode import decode
from .generate import generate
from .pairs import Pair


def seconds_an_image(
    pair: Pair, methods: Mapping[str, tuple[str, dict[str, Any]]], *, prompt: str, turns: int = 3
) -> dict[str, float]:
    """The whole call: text encoder, every denoiser step of both models, decoder, and the copy to the host.

    One batch of the pair's size; the methods take turns, so that what else the machine does meets them all, and the fastest
    of a method's turns counts, since other work only ever adds time. A turn more goes before, to warm up.

    Args:
        pair: whose batch size and devices are used.
        methods: label -> (method, its settings), as for `generate`.
        prompt: of all images.
        turns: measured turns, at least 1.

    Returns:
        label -> seconds.

    Raises:
        ValueError: turns is below 1.
    """
    if turns < 1:
        raise ValueError(f"turns={turns} must be at least 1")
    taken: dict[str, list[float]] = {label: [] for label in methods}
    for _ in range(turns + 1):
        for label, (method, settings) in methods.items():
            start = time.perf_counter()
            trace = generate(pair, prompt, method=method, seeds=range(pair.batch_size), **settings)
            decode(trace, pair, final=True)  # comes back on the CPU, so the device is done
            taken[label].append((time.perf_counter() - start) / pair.batch_size)
    return {label: min(seconds[1:]) for label, seconds in taken.items()}
