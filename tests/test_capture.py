import diffusers
import pytest
import torch

import dtviz

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "LCMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
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
    with pytest.raises(error), dtviz.capture(pipe):
        raise error
    assert not {"step", "set_timesteps"} & set(vars(pipe.scheduler))
    run(pipe)


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
    pipe.scheduler = diffusers.PNDMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(NotImplementedError, match="PNDMScheduler"), dtviz.capture(pipe):
        run(pipe)
