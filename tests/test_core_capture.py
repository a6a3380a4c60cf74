"""`capture` records every step of any pipeline and changes nothing."""

import copy
import functools
import inspect
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

import dtviz
import dtviz.core.capture
from dtviz.core.capture import Rows, _denoisers
from dtviz.core.schedulers import find

from .oracle import Waits, Watch, WatchPython, _arguments
from .test_core_schedulers import CLASSES, FEW, INSTALLED, REQUIRED, SHAPES
from .tiny import PIPELINES

# These pipelines work on the last latents after the last step: a division by sigma_data, a blend with the image
AFTER_THE_LAST_STEP = ("sana-sprint", "sdxl-inpaint")
# No guidance, or none that can be turned off (Cascade's prior fails without)
UNGUIDED = ("sd", "lcm", "flux", "sana-sprint", "ddim-pixels", "cascade-prior")
RENORMALISED = ("qwenimage",)  # each token's guided output gets the conditional one's length
UNDECODED = ("kandinsky22", "cascade", "cascade-prior", "ltx")  # their autoencoders, embeddings or packing
SCHEDULERS = ("DDPMScheduler", "LCMScheduler", "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler")


def run(pipe, **options) -> torch.Tensor:
    generator = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"} | options
    return pipe(["a dog"] * 2, generator=generator, **settings).images


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_no_pixel_and_no_denoiser_call_changes(pipe, kind):
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    signature, calls = inspect.signature(pipe.scheduler.step), []
    plain = run(pipe)
    everything = dtviz.capture(pipe, x_t=True, guidance=True)
    with everything as trace, pipe.unet.register_forward_hook(lambda *_: calls.append(1)):
        # pipelines look into the signature for `generator`, and would drop the seed without it
        assert inspect.signature(pipe.scheduler.step) == signature
        assert isinstance(pipe.scheduler, getattr(diffusers, kind)) and type(pipe.scheduler).__name__ == kind
        captured = run(pipe)
    assert torch.equal(plain, captured) and torch.equal(trace.final, captured)
    assert trace.x0.shape == trace.x_t.shape == (4, 2, 4, 8, 8) and trace.x0.dtype == torch.float32
    assert trace.steps_run == {"denoiser": 4} and len(calls) == 4 and (trace.sigmas.diff() < 0).all()
    reference = weakref.ref(captured)
    del captured
    assert reference() is None  # the capture holds nothing of the run
    assert trace.later_x0 is None and [call.step for call in trace.calls] == [0, 1, 2, 3]
    assert trace.calls[2].x0.data_ptr() == trace.x0[2].data_ptr()  # no second copy
    for part in (trace.x0, trace.x_t, trace.final, trace.conditional, trace.unconditional):  # and no further memory
        assert part.untyped_storage().nbytes() == part.numel() * 4


@pytest.mark.parametrize("key", PIPELINES)
def test_every_family_of_pipelines(key):
    tiny = PIPELINES[key]()
    kind = tiny.latent or tiny.images
    plain = torch.as_tensor(tiny.run(kind))
    with dtviz.capture(tiny.pipe, x_t=True) as trace:
        captured = torch.as_tensor(tiny.run(kind))
    assert torch.equal(plain, captured)
    assert trace.x0.dtype == torch.float32 and trace.x0.isfinite().all()
    assert len(trace.x0) == tiny.steps and (trace.sigmas.diff() < 0).all()
    assert trace.x0[0].shape == trace.x_t[0].shape == trace.final.shape
    if tiny.latent and key not in AFTER_THE_LAST_STEP:
        assert torch.equal(trace.final.reshape(captured.shape), captured.float())
    if key in UNDECODED:
        shape = rf"{type(tiny.pipe).__name__}.* its (packed )?latents of shape \({trace.final.shape[1]}, .* is not supported"
        with pytest.raises(NotImplementedError, match=shape):
            dtviz.decode(trace, tiny.pipe, final=True)
    elif key != "sdxl-inpaint":
        images = torch.as_tensor(np.asarray(tiny.run(tiny.images))).float()
        images = images.movedim(-1, -3) if images.shape[-1] == 3 else images
        decoded = dtviz.decode(trace, tiny.pipe, final=True, size=tiny.size)
        torch.testing.assert_close(decoded, images, atol=1e-5, rtol=0)
        every = dtviz.decode(trace, tiny.pipe, size=tiny.size, batch_size=1)
        assert every.shape == (len(trace.x0), *decoded.shape)


@pytest.mark.parametrize("key", [key for key in PIPELINES if key not in UNGUIDED])
def test_guidance_in_every_family(key):
    """At the first step the conditional x0 is that of a run without guidance. The guided one lies beyond it."""
    tiny = PIPELINES[key]()
    kind = tiny.latent or tiny.images
    with dtviz.capture(tiny.pipe, guidance=True) as trace:
        tiny.run(kind)
    with dtviz.capture(tiny.pipe) as plain:
        tiny.run(kind, **{"true_cfg_scale" if key == "qwenimage" else "guidance_scale": 1.0})
    close = {"atol": 1e-3 * float(trace.x0.abs().max()), "rtol": 0}
    torch.testing.assert_close(trace.conditional[0], plain.x0[0], **close)
    assert not torch.allclose(trace.unconditional[0], plain.x0[0], **close)
    if key not in RENORMALISED:
        added, direction = trace.x0 - trace.unconditional, trace.conditional - trace.unconditional
        scale = (added * direction).sum() / (direction**2).sum()
        assert scale > 1
        torch.testing.assert_close(added, scale * direction, **close)


def test_x0_equals_a_plain_loop(pipe):
    """A second implementation: the denoising loop written out with DDIM's own formula."""
    with dtviz.capture(pipe) as trace:
        run(pipe)
    text, empty = pipe.encode_prompt(["a dog"] * 2, "cpu", 1, True)
    x = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)])
    alphas = pipe.scheduler.alphas_cumprod
    times = [999, 749, 499, 249]
    for i, t in enumerate(times):
        with torch.no_grad():
            conditional, unconditional = pipe.unet(x, t, text).sample, pipe.unet(x, t, empty).sample
        noise = unconditional + 3 * (conditional - unconditional)
        x0 = (x - (1 - alphas[t]).sqrt() * noise) / alphas[t].sqrt()
        # one batch of four here, two of two there: float order, magnified by sigma = 14.6
        torch.testing.assert_close(trace.x0[i], x0, atol=2e-3, rtol=1e-4)
        after = alphas[times[i + 1]] if i < 3 else torch.tensor(1.0)
        x = after.sqrt() * x0 + (1 - after).sqrt() * noise
    torch.testing.assert_close(trace.x0[-1], trace.final, atol=1e-5, rtol=1e-5)  # DDIM ends at its last x0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_restored_on_every_exit(pipe, error):
    def stop(pipe, step, timestep, kwargs):
        if step == 1:
            raise error
        return kwargs

    kind, state = type(pipe.scheduler), set(vars(pipe.scheduler))
    with pytest.raises(error), dtviz.capture(pipe, guidance=True) as trace:
        run(pipe, callback_on_step_end=stop)
    assert trace.steps_run == {"denoiser": 2} and trace.x0.shape == (2, 2, 4, 8, 8)  # what was recorded is kept
    assert type(pipe.scheduler) is kind and set(vars(pipe.scheduler)) == state
    assert not pipe.unet._forward_hooks and not pipe.unet._forward_pre_hooks


def test_one_capture_holds_one_run(pipe):
    with dtviz.capture(pipe) as trace:
        with pytest.raises(RuntimeError, match="do not nest"), dtviz.capture(pipe):
            pass
        run(pipe)  # the outer capture is unharmed
    assert len(trace.x0) == 4
    words = "new timesteps after 4 recorded calls: open a capture for each run.* FreeInit"
    with pytest.raises(RuntimeError, match=words), dtviz.capture(pipe):
        run(pipe)
        run(pipe)
    with pytest.raises(RuntimeError, match="nothing was captured"), dtviz.capture(pipe):
        pass


def test_a_trace_is_empty_until_the_block_ends(pipe):
    with dtviz.capture(pipe) as trace:
        assert "filled in when" in repr(trace)
        for name in ("x0", "x_t", "seeds", "prompt", "steps_run", "calls"):
            with pytest.raises(AttributeError, match="block ends"):
                getattr(trace, name)
        run(pipe)
    assert trace.x_t is None


def test_bad_arguments_are_refused_before_the_run(pipe):
    words = "scheduler='prior_scheduler': this StableDiffusionPipeline has scheduler"
    with pytest.raises(ValueError, match=words), dtviz.capture(pipe, scheduler="prior_scheduler"):
        pytest.fail("the block ran")
    pipe.scheduler = diffusers.AmusedScheduler(mask_token_id=0)
    with pytest.raises(NotImplementedError, match="it samples discrete tokens"), dtviz.capture(pipe):
        pytest.fail("the block ran")


@pytest.mark.parametrize("replace", [copy.deepcopy, lambda it: diffusers.EulerDiscreteScheduler.from_config(it.config)])
def test_a_pipeline_may_copy_or_replace_its_scheduler(replace):
    """LEDITS++ puts another scheduler in place inside its call. It is noticed when the denoiser is called."""
    pipe, x = SimpleNamespace(scheduler=diffusers.DDIMScheduler(), unet=torch.nn.Identity()), torch.randn(1, 4, 2, 2)
    with dtviz.capture(pipe) as trace:
        pipe.scheduler = replace(pipe.scheduler)
        pipe.scheduler.set_timesteps(4)
        for t in pipe.scheduler.timesteps:
            output = pipe.unet(pipe.scheduler.scale_model_input(x, t))
            x = pipe.scheduler.step(output, t, x).prev_sample
    assert len(trace.x0) == 4 and torch.equal(trace.final, x)
    assert type(pipe.scheduler).__mro__[1] is diffusers.SchedulerMixin  # its own class again


def test_a_copy_steps_itself(pipe):
    x = torch.randn(1, 4, 8, 8)
    with dtviz.capture(pipe) as trace:
        other = copy.deepcopy(pipe.scheduler)
        other.set_timesteps(7)
        assert pipe.scheduler.num_inference_steps is None
        run(pipe)
        other.step(x, other.timesteps[0], x)  # recorded apart: the pipeline's own scheduler is the run
    assert len(trace.x0) == 4
    other.step(x, other.timesteps[1], x)  # the copy outlives the capture
    assert type(other) is diffusers.DDIMScheduler
    with pytest.raises(RuntimeError, match="stepped 2 copies of its scheduler"), dtviz.capture(pipe):
        for _ in range(2):
            other = copy.deepcopy(pipe.scheduler)
            other.set_timesteps(4)
            other.step(x, other.timesteps[0], x)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "PNDMScheduler", "HeunDiscreteScheduler"])
def test_views_of_one_sample_are_refused_and_one_view_is_a_trace(pipe, kind):
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    panorama = diffusers.StableDiffusionPanoramaPipeline(**parts, requires_safety_checker=False)
    panorama.set_progress_bar_config(disable=True)
    call = {"prompt": "a dog", "num_inference_steps": 4, "output_type": "latent", "height": 16, "width": 24}
    panorama.get_views = lambda *_, **__: [(0, 8, 0, 8), (0, 8, 4, 12)]
    words = "stepped twice at timestep .*, on parts of one sample .views or tiles."
    with pytest.raises(RuntimeError, match=words), dtviz.capture(panorama):
        panorama(**call)
    panorama.get_views = lambda *_, **__: [(0, 8, 0, 8)]
    with dtviz.capture(panorama) as trace:
        final = panorama(**call | {"width": 16}).images
    assert len(trace.x0) == 4 and torch.equal(trace.final, final)


def test_time_travel_is_recorded():
    """Noise is added after a step, and the step is made again (Lugmayr et al. 2022)."""
    scheduler, x = diffusers.DDIMScheduler(clip_sample=False), torch.randn(1, 4, 8, 8)
    with dtviz.capture(SimpleNamespace(scheduler=scheduler)) as trace:
        scheduler.set_timesteps(5)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.zeros_like(x), t, x).prev_sample
            x = scheduler.step(torch.zeros_like(x), t, 0.8 * x + 0.6 * torch.randn(x.shape)).prev_sample
    assert len(trace.x0) == 10 and torch.equal(trace.final, x)


def test_a_step_that_is_taken_back_is_one_step():
    """Cosmos steps to get x0, takes the step back and steps with a guided x0."""
    scheduler, x = diffusers.EDMEulerScheduler(sigma_max=80.0), torch.randn(1, 2, 4, 4)
    with dtviz.capture(SimpleNamespace(scheduler=scheduler), x_t=True) as trace:
        scheduler.set_timesteps(6)
        for t in scheduler.timesteps:
            guided = scheduler.step(x.repeat(2, 1, 1, 1), t, x.repeat(2, 1, 1, 1), return_dict=False)[1][:1] / 2
            scheduler._step_index -= 1
            x = scheduler.step(x, t, x, pred_original_sample=guided).prev_sample
    assert len(trace.x0) == len(trace.x_t) == 6
    torch.testing.assert_close(trace.x0[-1], x, atol=1e-5, rtol=0)  # the last step ends at sigma 0


def test_the_schedulers_type_compares_as_before(pipe):
    """Bria compares `type(self.scheduler)`."""
    kind = type(pipe.scheduler)
    with dtviz.capture(pipe):
        for scheduler in (pipe.scheduler, copy.deepcopy(pipe.scheduler), copy.copy(pipe.scheduler)):
            assert type(scheduler) == kind and kind == type(scheduler)  # noqa: E721
            assert type(scheduler) != diffusers.DDPMScheduler and type(scheduler) in {kind}  # noqa: E721
        run(pipe)
    assert type(pipe.scheduler) is kind


def test_denoisers_are_those_of_the_scheduler():
    names = "unet transformer_2 prior_prior prior_text_encoder decoder text_encoder transformer_norm"
    pipe = SimpleNamespace(**{name: torch.nn.Identity() for name in names.split()})
    for scheduler, expected in (
        ("scheduler", [pipe.unet, pipe.transformer_2, pipe.decoder]),
        ("prior_scheduler", [pipe.prior_prior]),
        ("decoder_scheduler", [pipe.decoder]),  # UnCLIP
    ):
        assert _denoisers(pipe, scheduler) == expected
    with pytest.raises(NotImplementedError, match="has no denoiser of its super_res_scheduler"):
        _denoisers(pipe, "super_res_scheduler")
    pipe.set_pag_applied_layers = None
    with pytest.raises(NotImplementedError, match="guides by three outputs"):
        _denoisers(pipe, "scheduler")


def test_guidance_of_a_prior():
    """PriorTransformer's output has a field of its own, and is an embedding."""
    prior = diffusers.PriorTransformer(2, 8, 1, embedding_dim=8, num_embeddings=4).eval()
    scheduler, x = diffusers.UnCLIPScheduler(prediction_type="sample"), torch.randn(1, 8)
    pipe = SimpleNamespace(prior=prior, scheduler=scheduler)
    with torch.no_grad(), dtviz.capture(pipe, guidance=True) as trace:
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps:
            text = {"proj_embedding": torch.randn(2, 8), "encoder_hidden_states": torch.randn(2, 4, 8)}
            u, c = prior(torch.cat([x, x]), t, **text).predicted_image_embedding.chunk(2)
            x = pipe.scheduler.step(u + 4 * (c - u), t, x).prev_sample
    assert trace.conditional.shape == (4, 1, 8)
    torch.testing.assert_close(trace.conditional[-1], c)
    torch.testing.assert_close(trace.unconditional[-1], u)


def test_guidance_of_another_kind_ends_the_block_and_not_the_call(pipe):
    def third_output(pipe, step, timestep, kwargs):
        pipe.unet(torch.zeros(1, 4, 8, 8), timestep, torch.zeros(1, 4, 16))  # a third output
        return kwargs

    words = "needs one or two denoiser outputs per step"
    with pytest.raises(NotImplementedError, match=words), dtviz.capture(pipe, guidance=True) as trace:
        captured = run(pipe, callback_on_step_end=third_output)
    assert torch.equal(trace.final, captured) and trace.x0.isfinite().all()
    assert trace.conditional[0].isfinite().all() and trace.conditional[1:].isnan().all()


@pytest.mark.parametrize(("kind", "calls"), [("HeunDiscrete", 7), ("KDPM2Discrete", 7), ("PNDM", 5)])
def test_every_call_and_the_step_it_belongs_to(pipe, kind, calls):
    options = {"skip_prk_steps": True} if kind == "PNDM" else {}
    pipe.scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(pipe.scheduler.config, **options)
    with dtviz.capture(pipe, x_t=True) as trace:
        run(pipe)
    steps = [call.step for call in trace.calls]
    assert trace.x0.shape == trace.x_t.shape == (4, 2, 4, 8, 8)
    assert len(steps) == calls and steps == sorted(steps) and set(steps) == {0, 1, 2, 3}
    first = [trace.calls[steps.index(step)] for step in range(4)]
    assert all(torch.equal(call.x0, x0) for call, x0 in zip(first, trace.x0, strict=True))
    assert [call.sigma for call in first] == trace.sigmas.tolist()
    inner = [call for i, call in enumerate(trace.calls) if i and call.step == trace.calls[i - 1].step]
    assert all(not torch.equal(call.x0, trace.x0[call.step]) for call in inner)


ZEROS = torch.zeros(3, device="meta")


@pytest.mark.parametrize(
    "violation",
    [
        lambda: ZEROS.cpu(), lambda: float(ZEROS[0]), lambda: bool(ZEROS[0] > 0), lambda: torch.zeros(3).to("meta"),
        lambda: torch.tensor(1.0).to("meta"), lambda: torch.tensor([1.0], device="meta"), lambda: ZEROS + torch.zeros(3),
        lambda: ZEROS[torch.tensor([0])], lambda: torch.empty(3).copy_(ZEROS, non_blocking=True),
        lambda: torch.empty(3, pin_memory=True).copy_(ZEROS), lambda: (ZEROS == 0).nonzero(), lambda: ZEROS.tolist(),
    ],
)  # fmt: skip
def test_the_watch_sees_what_would_wait(violation):
    with pytest.raises(Waits), Watch(), WatchPython():
        violation()


# Classes whose own `step` reads the timestep, and so waits. `predict_x0` reads it too.
READING = {
    "DDIM", "DDIMParallel", "DDIMInverse", "DDPM", "DDPMParallel", "DDPMWuerstchen", "UnCLIP", "RePaint", "CogVideoXDDIM",
    "CogVideoXDPM", "LCM", "TCD", "PNDM", "ConsistencyDecoder", "DPMSolverMultistepInverse", "ScoreSdeVe", "KarrasVe",
    "HeliosDMD",
}  # fmt: skip
# Classes whose own `step` waits otherwise: it copies coefficients to the device, or compares the timestep.
WAITING = {"UniPCMultistep", "SASolver", "FlowMatchHeunDiscrete", "LTXEulerAncestralRF", "Helios", "RFD4Proteina"}


@pytest.mark.parametrize("name", INSTALLED)
def test_recording_never_makes_the_host_wait(name, monkeypatch):
    """Samples and timesteps are on the meta device, which has no numbers."""
    monkeypatch.setattr(dtviz.core.capture, "ASYNCHRONOUS", ("meta",))
    scheduler, key = CLASSES[name](**REQUIRED.get(name, {})), name.removesuffix("Scheduler")
    x, module = torch.zeros(SHAPES.get(name, (1, 4, 8, 8)), device="meta"), inspect.getmodule(type(scheduler))
    if hasattr(module, "BrownianTreeNoiseSampler"):
        monkeypatch.setattr(module, "BrownianTreeNoiseSampler", lambda *_, **__: lambda *_: x)
    steps = 2 if name in FEW else 6
    try:
        scheduler.set_timesteps(steps, device="meta")
    except NotImplementedError:  # it reads them afterwards
        scheduler.set_timesteps(steps)
        scheduler.timesteps = scheduler.timesteps.to("meta")
    getattr(scheduler, "set_begin_index", lambda _: None)(0)
    scheduler.is_scale_input_called = True  # LMS warns otherwise
    scheduler.order = steps // 2  # so that rows grow
    truth, rule = SimpleNamespace(x0=x, shape=x.shape, noise=lambda: x), find(scheduler)

    def loop(scheduler, step) -> None:
        for i, t in enumerate(scheduler.timesteps[:-1][:4]):
            timestep, extra = t, {}
            if "DDIM" not in key:
                timestep, extra = _arguments(scheduler, scheduler.timesteps, i, t, truth, None)
            given = dict(zip(rule.names, (x, timestep, x), strict=True)) | extra
            accepted = inspect.signature(step).parameters
            step(**{name: value for name, value in given.items() if name in accepted})

    waits, own = key in READING | WAITING, copy.deepcopy(scheduler)
    with pytest.raises(Waits) if waits else nullcontext(), Watch(), WatchPython():
        loop(own, getattr(own, rule.step))
    if key in READING:
        return
    if waits:  # record without the step itself
        own_step = getattr(type(scheduler), rule.step)
        monkeypatch.setattr(type(scheduler), rule.step, functools.wraps(own_step)(_only_count))
    pipe, ends = SimpleNamespace(scheduler=scheduler), pytest.raises(NotImplementedError, match="meta")
    with ends, dtviz.capture(pipe, x_t=True), Watch(), WatchPython():  # at the end numbers are read, and meta has none
        loop(scheduler, getattr(scheduler, rule.step))


def _only_count(scheduler, model_output, *_, **__):
    scheduler._step_index = (scheduler.step_index or 0) + 1
    return (model_output,)


def test_rows_grow_and_shrink():
    rows = Rows()
    for i in range(5):
        rows.add(torch.full((2,), float(i)), expected=2)
    assert rows.tensor()[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert rows.tensor().untyped_storage().nbytes() == 5 * 2 * 4
    with pytest.raises(RuntimeError, match=r"changed its shape from \(2,\) to \(3,\)"):
        rows.add(torch.zeros(3), expected=2)
