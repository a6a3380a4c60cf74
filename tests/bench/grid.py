"""A grid of predicted images, and its figure a second time: `make bench` writes figures/bench/grid.csv.

Instead of capturing, one could stop the pipeline after each step and decode x0 there: T runs for T steps. Instead of caching,
one could compute every result again. Ratios within one run, in turns.
"""

from __future__ import annotations

import statistics
import tempfile

import torch

import dtviz
from dtviz.experiments.cache import Cache
from dtviz.experiments.study import Study

from .measure import beside, publish, timed

STEPS = (4, 10, 20, 50)


def rerun(steps: int, repeats: int = 3) -> dict:
    """Capture and decode against one run per step, each ended by diffusers' own interrupt."""
    pipe = dtviz.load("emoji-dmd").pipeline
    options = {"num_inference_steps": steps, "guidance_scale": 5.0, "output_type": "latent"}

    def images(**callback) -> torch.Tensor:
        with dtviz.capture(pipe) as trace:
            pipe("dog face", generator=torch.Generator().manual_seed(0), **callback, **options)
        return dtviz.decode(trace, pipe)

    def one_by_one() -> torch.Tensor:
        def stop_after(last: int):
            def stop(pipeline, step, timestep, kwargs):
                pipeline._interrupt = step >= last
                return kwargs

            return stop

        return torch.stack([images(callback_on_step_end=stop_after(last))[-1] for last in range(steps)])

    torch.testing.assert_close(images(), one_by_one(), rtol=0, atol=1e-5)  # decoded in other batches
    ours, instead, ratio = beside(images, one_by_one, repeats)
    what = f"emoji-base, grid of {steps} steps: one run, against one a step"
    return {"what": what, "unit": "s", "dtviz": ours, "instead": instead, "ratio": ratio}


def cached(what: str, call, repeats: int = 3) -> dict:
    """A study's numbers read from its cache against computed again."""
    turns = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            study = Study.open("emoji-dmd", seeds=range(10), cache=Cache(folder))
            computed = timed(lambda: call(study))  # noqa: B023 - called at once
            turns.append((timed(lambda: call(study)), computed))  # noqa: B023
    ours, instead = (statistics.median(column) for column in zip(*turns, strict=True))
    what = f"emoji-dmd, 10 seeds, {what}: read from the cache, against computed again"
    ratio = statistics.median(b / a for a, b in turns)
    return {"what": what, "unit": "s", "dtviz": ours, "instead": instead, "ratio": ratio}


def similarity(study: Study) -> None:
    steps = study.features("dog face", "base", steps=True)
    dtviz.similarity_to_final(steps, study.features("dog face", "base"))


def diversity(study: Study) -> None:
    for method in ("base", "distilled", "hybrid"):
        dtviz.mean_pairwise(study.features("dog face", method))


if __name__ == "__main__":
    rows = [cached("similarity to the final image", similarity), cached("diversity of three methods", diversity)]
    publish([*map(rerun, STEPS), *rows], "grid")
