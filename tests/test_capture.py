import copy
import inspect
import weakref

import diffusers
import pytest
import torch

import dtviz
from dtviz.recorder import Rows

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)


def run(pipe, **options) -> torch.Tensor:
    generator = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"} | options
    return pipe(["a dog"] * 2, generator=generator, **settings).images


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_capturing_changes_no_pixel(pipe, kind):
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    plain = run(pipe)
    with dtviz.capture(pipe, x_t=True) as trace:
        captured = run(pipe)
    assert torch.equal(plain, captured)
    assert torch.equal(trace.final, captured)
    assert trace.x0.shape == trace.x_t.shape == (4, 2, 4, 8, 8)
    assert trace.x0.dtype == torch.float32
    assert (trace.sigmas.diff() < 0).all()
    assert trace.steps_run == {"denoiser": 4}


def test_ddim_ends_where_it_plans(pipe):
    """DDIM's last step goes to zero noise, so its last x̂0 is the final sample."""
    with dtviz.capture(pipe) as trace:
        run(pipe)
    torch.testing.assert_close(trace.x0[-1], trace.final, atol=1e-5, rtol=1e-5)


def test_x0_is_after_guidance_and_equals_a_plain_loop(pipe):
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


def test_no_denoiser_call_is_added(pipe):
    calls = []
    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    with dtviz.capture(pipe):
        run(pipe)
    handle.remove()
    assert len(calls) == 4


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_restored_on_every_way_out(pipe, error):
    kind, state = type(pipe.scheduler), dict(vars(pipe.scheduler))
    with pytest.raises(error), dtviz.capture(pipe):
        raise error
    assert type(pipe.scheduler) is kind
    assert vars(pipe.scheduler).keys() == state.keys()
    assert not pipe.unet._forward_hooks and not pipe.unet._forward_pre_hooks
    run(pipe)


def test_what_an_interrupted_run_recorded_is_kept(pipe):
    def stop(pipe, step, timestep, kwargs):
        if step == 1:
            raise KeyboardInterrupt
        return kwargs

    with pytest.raises(KeyboardInterrupt), dtviz.capture(pipe) as trace:
        run(pipe, callback_on_step_end=stop)
    assert trace.steps_run == {"denoiser": 2}
    assert trace.x0.shape == (2, 2, 4, 8, 8)


def test_refuses_to_nest(pipe):
    with dtviz.capture(pipe) as trace:
        with pytest.raises(RuntimeError, match="do not nest"), dtviz.capture(pipe):
            pass
        run(pipe)  # the outer capture is unharmed
    assert len(trace.x0) == 4


def test_refuses_a_second_run(pipe):
    with pytest.raises(RuntimeError, match="one capture holds one run"), dtviz.capture(pipe):
        run(pipe)
        run(pipe)


def test_refuses_an_empty_block(pipe):
    with pytest.raises(RuntimeError, match="nothing was captured"), dtviz.capture(pipe):
        pass


def test_trace_says_when_it_is_filled(pipe):
    with dtviz.capture(pipe) as trace:
        with pytest.raises(AttributeError, match="block ends"):
            _ = trace.x0
        run(pipe)
    assert trace.x_t is None


def test_unknown_scheduler_is_refused_before_the_run(pipe):
    pipe.scheduler = diffusers.PiflowScheduler()
    with (
        pytest.raises(NotImplementedError, match="PiflowScheduler has no predicted x̂0: its model predicts a policy"),
        dtviz.capture(pipe),
    ):
        run(pipe)


def test_bad_arguments_are_refused(pipe):
    with (
        pytest.raises(ValueError, match="scheduler='prior_scheduler': this StableDiffusionPipeline has scheduler"),
        dtviz.capture(pipe, scheduler="prior_scheduler"),
    ):
        run(pipe)
    with (
        pytest.raises(ValueError, match=r"dtype=torch.bfloat16 is not one of torch.float32, torch.float16"),
        dtviz.capture(pipe, dtype=torch.bfloat16),
    ):
        run(pipe)


def test_the_signature_that_pipelines_look_into_stays(pipe):
    """DDPM's `generator` would be dropped without it, and the seed with it."""
    pipe.scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    before = inspect.signature(pipe.scheduler.step)
    with dtviz.capture(pipe):
        assert inspect.signature(pipe.scheduler.step) == before
        assert isinstance(pipe.scheduler, diffusers.DDPMScheduler)
        assert type(pipe.scheduler).__name__ == "DDPMScheduler"
        run(pipe)


class Copying(diffusers.StableDiffusionPipeline):
    """Steps a copy of its scheduler."""

    def __call__(self, *args, **kwargs):
        own = self.scheduler
        self.scheduler = copy.deepcopy(own)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self.scheduler = own


class Replacing(diffusers.StableDiffusionPipeline):
    """Puts another scheduler in place inside the call, as LEDITS++ does."""

    def __call__(self, *args, **kwargs):
        self.scheduler = diffusers.EulerDiscreteScheduler.from_config(self.scheduler.config)
        return super().__call__(*args, **kwargs)


@pytest.mark.parametrize("kind", [Copying, Replacing])
def test_survives_a_pipeline_that_copies_or_replaces_its_scheduler(pipe, kind):
    expected = run(kind(**pipe.components, requires_safety_checker=False))
    other = kind(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    with dtviz.capture(other) as trace:
        captured = run(other)
    assert torch.equal(captured, expected)
    assert torch.equal(trace.final, expected)
    assert len(trace.x0) == 4
    assert type(other.scheduler).__mro__[1] is diffusers.SchedulerMixin  # its own class again


def test_a_copy_steps_itself_and_not_the_original(pipe):
    """A deep copy of an instance with a patched method would call the original's."""
    with dtviz.capture(pipe) as trace:
        other = copy.deepcopy(pipe.scheduler)
        other.set_timesteps(7)
        assert pipe.scheduler.num_inference_steps is None
        run(pipe)
        x = torch.randn(1, 4, 8, 8)
        other.step(x, other.timesteps[0], x)  # recorded apart: the pipeline's own scheduler is the run
    assert len(trace.x0) == 4
    other.step(x, other.timesteps[1], x)  # the copy outlives the capture
    assert type(other) is diffusers.DDIMScheduler


def test_copies_that_share_the_sample_are_refused(pipe):
    with (
        pytest.raises(RuntimeError, match="StableDiffusionPipeline stepped 2 copies of its scheduler"),
        dtviz.capture(pipe),
    ):
        for _ in range(2):
            other = copy.deepcopy(pipe.scheduler)
            other.set_timesteps(4)
            other.step(torch.zeros(1, 4, 8, 8), other.timesteps[0], torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("kind", "calls"), [("HeunDiscreteScheduler", 7), ("KDPM2DiscreteScheduler", 7), ("PNDMScheduler", 5)]
)
def test_every_call_and_the_step_it_belongs_to(pipe, kind, calls):
    options = {"skip_prk_steps": True} if kind == "PNDMScheduler" else {}
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **options)
    with dtviz.capture(pipe, x_t=True) as trace:
        run(pipe)
    assert trace.x0.shape == trace.x_t.shape == (4, 2, 4, 8, 8)
    assert len(trace.calls) == calls
    steps = [call.step for call in trace.calls]
    assert steps == sorted(steps)
    assert set(steps) == {0, 1, 2, 3}
    first = [trace.calls[steps.index(step)] for step in range(4)]
    assert all(torch.equal(call.x0, x0) for call, x0 in zip(first, trace.x0, strict=True))
    assert [call.sigma for call in first] == trace.sigmas.tolist()
    inner = [call for i, call in enumerate(trace.calls) if i and call.step == trace.calls[i - 1].step]
    assert all(not torch.equal(call.x0, trace.x0[call.step]) for call in inner)


def test_one_call_a_step_needs_no_second_copy(pipe):
    with dtviz.capture(pipe) as trace:
        run(pipe)
    assert trace.later_x0 is None
    assert [call.step for call in trace.calls] == [0, 1, 2, 3]
    assert trace.calls[2].x0.data_ptr() == trace.x0[2].data_ptr()


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_conditional_and_unconditional_x0(pipe, kind):
    """Their guided mix is the guided x̂0, and each is that of a run's own denoiser output."""
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    with dtviz.capture(pipe, guidance=True) as trace:
        run(pipe, guidance_scale=7.5)
    mixed = trace.unconditional + 7.5 * (trace.conditional - trace.unconditional)
    torch.testing.assert_close(mixed, trace.x0, atol=1e-3, rtol=1e-3)
    with dtviz.capture(pipe) as plain:
        run(pipe, guidance_scale=1.0)
    torch.testing.assert_close(plain.x0[0], trace.conditional[0], atol=2e-3, rtol=1e-3)
    assert not torch.allclose(trace.conditional, trace.unconditional, atol=1e-2)


def test_guidance_rescaled_sample_by_sample_is_told_apart(pipe):
    with dtviz.capture(pipe, guidance=True) as trace:
        run(pipe, guidance_scale=7.5, guidance_rescale=0.7)
    with dtviz.capture(pipe, guidance=True) as plain:
        run(pipe, guidance_scale=7.5)
    torch.testing.assert_close(trace.conditional[0], plain.conditional[0])
    assert not torch.allclose(trace.x0[0], plain.x0[0], atol=1e-2)


def test_without_guidance_there_is_no_unconditional_x0(pipe):
    with dtviz.capture(pipe, guidance=True) as trace:
        run(pipe, guidance_scale=1.0)
    assert torch.equal(trace.conditional, trace.x0)
    assert trace.unconditional.isnan().all()


def test_half_precision_on_request(pipe):
    with dtviz.capture(pipe) as full:
        run(pipe)
    with dtviz.capture(pipe, dtype=torch.float16, x_t=True) as half:
        run(pipe)
    assert half.x0.dtype == half.x_t.dtype == torch.float16
    torch.testing.assert_close(half.x0.float(), full.x0, atol=2e-2, rtol=1e-3)
    assert half.final.dtype == torch.float32


@pytest.mark.parametrize("steps", [3, 5, 8])
def test_memory_is_what_the_numbers_need(pipe, steps):
    with dtviz.capture(pipe, x_t=True) as trace:
        run(pipe, num_inference_steps=steps)
    for part in (trace.x0, trace.x_t, trace.final):
        assert part.untyped_storage().nbytes() == part.numel() * 4


def test_rows_grow_and_shrink_to_what_came():
    rows = Rows(torch.float32)
    for i in range(5):
        rows.add(torch.full((2,), float(i)), expected=2)
    assert rows.tensor()[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert rows.tensor().untyped_storage().nbytes() == 5 * 2 * 4
    with pytest.raises(RuntimeError, match=r"changed its shape from \(2,\) to \(3,\)"):
        rows.add(torch.zeros(3), expected=2)


def test_nothing_of_the_run_is_held_after_it(pipe):
    with dtviz.capture(pipe, guidance=True) as trace:
        latents = run(pipe)
    held = weakref.ref(latents)
    del latents
    assert held() is None
    assert trace.final is not None


def test_a_trace_with_all_its_parts_is_saved_and_selected(pipe, tmp_path):
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with dtviz.capture(pipe, guidance=True, x_t=True) as trace:
        run(pipe)
    again = dtviz.Trace.load(trace.save(tmp_path / "a.trace"))
    assert [call.step for call in again.calls] == [call.step for call in trace.calls]
    one, two = trace.select([0]), trace.select([1])
    joined = dtviz.Trace.join([one, two])
    for name in ("x0", "x_t", "conditional", "unconditional", "later_x0", "final"):
        assert torch.equal(getattr(again, name), getattr(trace, name))
        assert torch.equal(getattr(joined, name), getattr(trace, name))
    assert repr(again) == (
        "Trace(4 steps, 2 samples, latents (4, 8, 8), sigma 14.6 to 0.693, steps_run={'denoiser': 4})"
    )


def test_a_trace_not_filled_yet_says_so(pipe):
    with dtviz.capture(pipe) as trace:
        assert "filled in when" in repr(trace)
        for name in ("x_t", "seeds", "prompt", "steps_run", "calls"):
            with pytest.raises(AttributeError, match="block ends"):
                getattr(trace, name)
        run(pipe)
