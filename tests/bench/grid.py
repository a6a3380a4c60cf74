"""A grid of plans, and a second look at it: `make bench` writes figures/bench/grid.csv. Ratios within one run, in turns.

Instead of capturing one could stop the pipeline after each step in turn and decode what is planned there, T runs for T steps;
and instead of keeping results one could make them again for every figure.
"""

from __future__ import annotations

import statistics
import tempfile

import torch

import dtviz
from dtviz.store import Store
from dtviz.study import Study

from .measure import beside, publish, timed

STEPS = (4, 10, 20, 50)


def rerun(steps: int, repeats: int = 3) -> dict:
    """Capture and decode against one run a step, each ended by diffusers' own interrupt after the step that is looked at."""
    pair = dtviz.load("emoji-dmd")
    pipe = pair.pipeline
    options = {"num_inference_steps": steps, "guidance_scale": 5.0, "output_type": "latent"}

    def plans() -> torch.Tensor:
        with dtviz.capture(pipe) as trace:
            pipe("dog face", generator=torch.Generator().manual_seed(0), **options)
        return dtviz.decode(trace, pipe)

    def one_by_one() -> torch.Tensor:
        images = []
        for last in range(steps):

            def stop(pipeline, step, timestep, kept, last=last):
                pipeline._interrupt = step >= last
                return kept

            with dtviz.capture(pipe) as trace:
                generator = torch.Generator().manual_seed(0)
                pipe("dog face", generator=generator, callback_on_step_end=stop, **options)
            images.append(dtviz.decode(trace, pipe)[-1])
        return torch.stack(images)

    torch.testing.assert_close(plans(), one_by_one(), rtol=0, atol=1e-5)  # decoded in other batches
    ours, instead, ratio = beside(plans, one_by_one, repeats)
    what = f"emoji-base, grid of {steps} steps: one run, against one a step"
    return {"what": what, "unit": "s", "dtviz": ours, "instead": instead, "ratio": ratio}


def kept(what: str, call, repeats: int = 3) -> dict:
    """A study's numbers read from its store against made again."""
    pairs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            study = Study.open("emoji-dmd", seeds=range(10), store=Store(folder))
            made = timed(lambda: call(study))  # noqa: B023 - called at once
            pairs.append((timed(lambda: call(study)), made))  # noqa: B023
    ours, instead = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "what": f"emoji-dmd, 10 seeds, {what}: read from the store, against made again",
        "unit": "s",
        "dtviz": ours,
        "instead": instead,
        "ratio": statistics.median(b / a for a, b in pairs),
    }


def curves(study: Study) -> None:
    steps = study.features("dog face", "base", steps=True)
    dtviz.similarity_to_final(steps, study.features("dog face", "base"))


def diversity(study: Study) -> None:
    for method in ("base", "distilled", "hybrid"):
        dtviz.mean_pairwise(study.features("dog face", method))


def main() -> None:
    rows = [rerun(steps) for steps in STEPS]
    rows += [kept("similarity to the final image", curves), kept("diversity of three methods", diversity)]
    publish(rows, "grid")


if __name__ == "__main__":
    main()
