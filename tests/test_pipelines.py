"""Capture and decode inside every family of pipelines, on tiny random instances of diffusers' own classes."""

from typing import Any

import numpy as np
import pytest
import torch

import dtviz

from .tiny import PIPELINES, Tiny

# The pipelines whose last step is not the whole truth: they work on the last latents after it
AFTER_THE_LAST_STEP = {
    "sana-sprint": "divides by the data's deviation",
    "sdxl-inpaint": "blends with the image",
}
# No guidance asked for, or none to be turned off (Cascade's prior fails without), or not to be seen (this random
# AuraFlow hardly hears its text)
UNGUIDED = ("sd", "heun", "pndm", "lcm", "flux", "sana-sprint", "ddim-pixels", "cascade-prior", "auraflow")
RENORMALISED = ("qwenimage", "lumina2")  # each token's guided output gets the conditional one's length


def run(tiny: Tiny, output_type: str | None, **options: Any):
    generator = torch.Generator().manual_seed(0)
    given = {"output_type": output_type} if output_type else {}
    return getattr(tiny.pipe(**tiny.call, **given, **options, generator=generator), tiny.field)


@pytest.mark.parametrize("key", PIPELINES)
def test_capture_sees_every_step_and_changes_nothing(key):
    tiny = PIPELINES[key]()
    kind = tiny.latent or tiny.images
    plain = torch.as_tensor(run(tiny, kind))
    with dtviz.capture(tiny.pipe, x_t=True) as trace:
        captured = torch.as_tensor(run(tiny, kind))
    assert torch.equal(plain, captured)
    assert trace.x0.dtype == torch.float32
    assert trace.x0.isfinite().all()
    assert len(trace.x0) == tiny.steps
    assert (trace.sigmas.diff() < 0).all()
    assert trace.x0[0].shape == trace.x_t[0].shape == trace.final.shape
    if tiny.latent and key not in AFTER_THE_LAST_STEP:
        torch.testing.assert_close(trace.final.reshape(captured.shape), captured.float(), atol=0, rtol=0)


def size_of(key: str, tiny: Tiny) -> tuple[int, ...] | None:
    return (tiny.call["num_frames"], *tiny.size) if key == "ltx" else tiny.size


@pytest.mark.parametrize("key", [key for key in PIPELINES if PIPELINES[key]().images])
def test_decode_equals_the_pipelines_own_images(key):
    tiny = PIPELINES[key]()
    images = torch.as_tensor(np.asarray(run(tiny, tiny.images)))
    with dtviz.capture(tiny.pipe) as trace:
        run(tiny, tiny.images)
    size = size_of(key, tiny)
    ours = dtviz.decode(trace, tiny.pipe, final=True, size=size)
    if images.shape[-1] == 3:
        images = images.movedim(-1, -3)
    if key == "sdxl-inpaint":  # its last latents are blended with the image after the last step
        assert ours.shape == images.shape
        return
    torch.testing.assert_close(ours, images.float(), atol=1e-5, rtol=0)
    every = dtviz.decode(trace, tiny.pipe, size=size, batch_size=1)
    assert every.shape == (len(trace.x0), *ours.shape)
    steps = list(dtviz.decode_steps(trace, tiny.pipe, size=size))
    torch.testing.assert_close(torch.stack(steps), every, atol=1e-5, rtol=0)


@pytest.mark.parametrize("key", ["sd-guided", "sdxl", "flux", "pixart", "sana", "kandinsky22", "wan"])
def test_several_images_a_prompt(key):
    tiny = PIPELINES[key]()
    name = "num_videos_per_prompt" if key == "wan" else "num_images_per_prompt"
    with dtviz.capture(tiny.pipe) as trace:
        run(tiny, tiny.latent, **{name: 3})
    assert trace.x0.shape[1] == trace.final.shape[0] == 3
    assert not torch.equal(trace.x0[:, 0], trace.x0[:, 1])


@pytest.mark.parametrize("key", [key for key in PIPELINES if key not in UNGUIDED])
def test_what_guidance_adds(key):
    """At the first step the conditional x̂0 is that of a run without guidance; the guided one lies beyond it."""
    tiny = PIPELINES[key]()
    kind = tiny.latent or tiny.images
    with dtviz.capture(tiny.pipe, guidance=True) as trace:
        run(tiny, kind)
    off = "true_cfg_scale" if key == "qwenimage" else "guidance_scale"
    with dtviz.capture(tiny.pipe) as plain:
        run(Tiny(**vars(tiny) | {"call": tiny.call | {off: 1.0}}), kind)
    size = float(trace.x0.abs().max())
    torch.testing.assert_close(trace.conditional[0], plain.x0[0], atol=1e-3 * size, rtol=0)
    assert not torch.allclose(trace.unconditional[0], plain.x0[0], atol=1e-3 * size)
    if key not in RENORMALISED:
        added, direction = trace.x0 - trace.unconditional, trace.conditional - trace.unconditional
        scale = (added * direction).sum() / (direction**2).sum()
        assert scale > 1
        torch.testing.assert_close(added, scale * direction, atol=1e-3 * size, rtol=0)


def test_base_to_refiner():
    """Two captures, one picture: the refiner goes on where the base ended, at the next noise level."""
    base, refiner = PIPELINES["sdxl-base-to-refiner"](), PIPELINES["sdxl-refiner"]()
    with dtviz.capture(base.pipe) as first:
        latents = run(base, "latent")
    with dtviz.capture(refiner.pipe, x_t=True) as second:
        refiner.pipe(
            **refiner.call | {"image": latents}, generator=torch.Generator().manual_seed(0), output_type="latent"
        )
    assert first.sigmas[-1] > second.sigmas[0]
    assert torch.equal(first.final, latents)
    unit = (1 + second.sigmas[0] ** 2) ** -0.5 if type(refiner.pipe.scheduler).__name__.startswith("Euler") else 1.0
    torch.testing.assert_close(second.x_t[0], latents * unit)


def test_a_cut_run_starts_at_its_own_noise_level():
    """Image to image with strength .6 begins in the middle of the schedule."""
    tiny = PIPELINES["sdxl-img2img"]()
    with dtviz.capture(tiny.pipe) as trace:
        run(tiny, "latent")
    assert trace.timesteps[0] < 0.7 * tiny.pipe.scheduler.config.num_train_timesteps


def test_packed_latents_need_their_size():
    tiny = PIPELINES["flux"]()
    with dtviz.capture(tiny.pipe) as trace:
        run(tiny, "latent")
    with pytest.raises(ValueError, match=r"size=None: \d+ packed latents are not a square"):
        dtviz.decode(trace, tiny.pipe)
    with pytest.raises(ValueError, match=r"size=\(64, 64\) makes \d+ packed latents, the trace has \d+"):
        dtviz.decode(trace, tiny.pipe, size=(64, 64))


def test_latents_that_are_no_images_are_refused():
    tiny = PIPELINES["cascade-prior"]()
    with dtviz.capture(tiny.pipe) as trace:
        run(tiny, tiny.latent)
    with pytest.raises(NotImplementedError, match="StableCascadePriorPipeline has no autoencoder"):
        dtviz.decode(trace, tiny.pipe)


def test_an_autoencoder_of_unknown_scale_is_refused():
    tiny = PIPELINES["sd"]()
    with dtviz.capture(tiny.pipe) as trace:
        run(tiny, "latent")

    class AutoencoderNew(type(tiny.pipe.vae)):
        pass

    tiny.pipe.vae.__class__ = AutoencoderNew
    with pytest.raises(NotImplementedError, match="StableDiffusionPipeline decodes with AutoencoderNew"):
        dtviz.decode(trace, tiny.pipe)
