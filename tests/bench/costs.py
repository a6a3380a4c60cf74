"""dtviz beside what a user would do instead: `make bench` writes figures/bench/costs.csv. Ratios within one run, in turns."""

import multiprocessing
import tempfile
from functools import partial
from types import SimpleNamespace

import diffusers
import torch

import dtviz
from dtviz.core.decode import Preview, decode_latents
from dtviz.experiments.cache import Cache
from dtviz.experiments.study import Study

from .measure import DEVICE, compare, peak, publish, row

LATENTS = 8


def capturing() -> dict:
    """A whole run of an embedded model, captured and not."""
    pipe = dtviz.load("emoji-dmd").pipeline
    options = {"num_inference_steps": 20, "guidance_scale": 5.0, "output_type": "latent", "num_images_per_prompt": 8}

    def plain() -> None:
        pipe("dog face", generator=torch.Generator().manual_seed(0), **options)

    def captured() -> None:
        with dtviz.capture(pipe):
            plain()

    what = f"inside capture, against without: emoji-base on {DEVICE}, 20 steps, guidance 5, 8 samples, whole run"
    return compare(what, captured, plain, 9)


def grid(steps: int) -> dict:
    """Capture and decode against one run per step, each ended by diffusers' own interrupt."""
    pipe = dtviz.load("emoji-dmd").pipeline
    options = {"num_inference_steps": steps, "guidance_scale": 5.0, "output_type": "latent"}

    def images(**callback) -> torch.Tensor:
        with dtviz.capture(pipe) as trace:
            pipe("dog face", generator=torch.Generator().manual_seed(0), **callback, **options)
        return dtviz.decode(trace, pipe)

    def one_by_one() -> torch.Tensor:
        def stop(pipeline, step, timestep, kwargs, *, last: int):
            pipeline._interrupt = step >= last
            return kwargs

        return torch.stack([images(callback_on_step_end=partial(stop, last=last))[-1] for last in range(steps)])

    torch.testing.assert_close(images(), one_by_one(), rtol=0, atol=1e-5)  # decoded in other batches
    return compare(f"emoji-base, grid of {steps} steps: one run, against one a step", images, one_by_one)


def cached(what: str, call) -> dict:
    """A study's numbers read from its cache against computed again."""
    with tempfile.TemporaryDirectory() as folder:
        studies = iter([Study.open("emoji-dmd", seeds=range(10), cache=Cache(f"{folder}/{i}")) for i in range(4)])
        warm = Study.open("emoji-dmd", seeds=range(10), cache=Cache(f"{folder}/warm"))
        call(warm)
        what = f"emoji-dmd, 10 seeds, {what}: read from the cache, against computed again"
        return compare(what, lambda: call(warm), lambda: call(next(studies)))


def similarity(study: Study) -> None:
    steps = study.features("dog face", "base", steps=True)
    dtviz.similarity_to_final(steps, study.features("dog face", "base"))


def diversity(study: Study) -> None:
    for method in ("base", "distilled", "hybrid"):
        dtviz.mean_pairwise(study.features("dog face", method))


def hybrid(name: str) -> dict:
    """A hybrid and its distilled model, at the same number of evaluations."""
    pair = dtviz.load(name)
    options = {"seeds": range(10), "handover": "distilled-scheduler"}
    run = partial(dtviz.generate, pair, "dog face", **options)
    methods = [partial(run, method=method) for method in ("hybrid", "distilled")]
    assert all(sum(method().provenance["nfe"].values()) == 4 for method in methods)
    return compare(f"{name} on {DEVICE}: hybrid, against distilled model, 4 evaluations, 10 samples", *methods, 21)


def autoencoder() -> SimpleNamespace:
    """Return all that decoding needs of a pipeline: SDXL's autoencoder with random weights."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, scaling_factor=0.13025,
    )  # fmt: skip
    return SimpleNamespace(vae=vae.eval().to(DEVICE), scheduler=diffusers.DDIMScheduler())


def decoding(name: str, vae) -> dict:
    """One latent by a quicker decoder."""
    pipe, latents = autoencoder(), torch.randn(1, 4, 64, 64)
    decoders = (partial(decode_latents, latents, pipe, vae=vae), partial(decode_latents, latents, pipe))
    return compare(f"one 512 px x0 by {name} on {DEVICE}, against SDXL's autoencoder", *decoders)


def growth(batch_size: int) -> float:
    """Return the GiB that a process grows by while it decodes all latents."""
    pipe = autoencoder()
    before = peak()
    decode_latents(torch.randn(LATENTS, 4, 64, 64), pipe, batch_size=batch_size)
    return peak() - before


def decoding_memory() -> dict:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        sizes = pool.map(growth, (1, LATENTS), chunksize=1)
    what = f"{LATENTS} images of 512 px on {DEVICE}, SDXL's autoencoder: one by one (the default there), "
    return row(what + "against together", "GiB", *sizes)


def main() -> None:
    rows = [capturing(), *map(grid, (4, 10, 20, 50))]
    rows += [cached("similarity to the final image", similarity), cached("diversity of three methods", diversity)]
    rows += [hybrid("emoji-dmd"), hybrid("emoji-dmd-lora")]
    rows += [decoding("AutoencoderTiny", diffusers.AutoencoderTiny().eval().to(DEVICE))]
    rows += [decoding("linear preview", Preview(torch.randn(5, 3) / 4, 8, 1.0)), decoding_memory()]
    publish(rows, "costs")


if __name__ == "__main__":
    main()
