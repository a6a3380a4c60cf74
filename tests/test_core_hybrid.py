"""`hybrid` around ordinary pipeline calls, against diffusers' own way to change the denoiser in mid-run."""

import copy
import inspect

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, LCMScheduler, UNet2DConditionModel
from peft import LoraConfig

import dtviz

from .tiny import PIPELINES, tiny_unet

FAMILIES = (
    "sd", "sd-guided", "sd-controlnet", "sdxl", "sdxl-img2img", "sdxl-inpaint", "sd3", "flux", "qwenimage", "sana",
)  # fmt: skip
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_distilled_model_takes_over_after_k_steps(family, k):
    """The oracle puts it in the pipeline's own place from a callback at the end of step k."""
    tiny = PIPELINES[family]()
    base = getattr(tiny.pipe, tiny.denoiser)
    distilled = copy.deepcopy(base)
    torch.manual_seed(5)
    for parameter in distilled.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) * parameter.abs().mean()
    plain = tiny.run(tiny.latent)

    def swap(pipe, step, timestep, kwargs):
        if step == k - 1:
            setattr(pipe, tiny.denoiser, distilled)
        return {}

    expected = tiny.run(tiny.latent, callback_on_step_end=swap)
    setattr(tiny.pipe, tiny.denoiser, base)
    kind = type(tiny.pipe.scheduler)
    with dtviz.hybrid(tiny.pipe, distilled, k=k, base_guidance=None) as run:
        ours = tiny.run(tiny.latent)
    torch.testing.assert_close(ours, expected)
    assert not torch.allclose(ours, plain, atol=1e-4)
    assert run.steps_run == {"base": k, "distilled": tiny.steps - k}
    assert torch.equal(tiny.run(tiny.latent), plain)  # the block leaves nothing behind
    assert type(tiny.pipe.scheduler) is kind
    assert "forward" not in vars(base)


@pytest.mark.parametrize("k", [1, 2])
def test_a_second_order_scheduler_is_not_cut_within_a_step(pipe, k):
    """Heun's step k ends at its call 2k - 1 from the start, where the oracle's callback swaps the networks."""
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    base, distilled = pipe.unet, tiny_unet(2)

    def run(**options) -> torch.Tensor:
        options |= {"guidance_scale": 0, "num_inference_steps": 4, "output_type": "latent"}
        return pipe("dog", generator=torch.Generator().manual_seed(3), **options)[0]

    def swap(pipe, call, timestep, kwargs):
        if call == 2 * k - 1:
            pipe.unet = distilled
        return {}

    expected = run(callback_on_step_end=swap)
    pipe.unet = base
    with dtviz.hybrid(pipe, distilled, k=k) as facts:
        torch.testing.assert_close(run(), expected)
    assert facts.steps_run == {"base": k, "distilled": 4 - k}
    assert facts.nfe == {"base": 2 * k, "distilled": 7 - 2 * k}


@pytest.fixture
def few(pipe):
    """The tiny pipeline with a distilled model's scheduler, that model, and the call."""
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=1000)

    def run(guidance_scale: float = 0.0, **options) -> torch.Tensor:
        options = {
            "timesteps": [999, 749, 499, 249],
            "guidance_scale": guidance_scale,
            "output_type": "latent",
        } | options
        return pipe("dog", generator=torch.Generator().manual_seed(3), **options).images

    return pipe, tiny_unet(2), run


@pytest.mark.parametrize("base_guidance", [0.0, 3.0])
def test_it_is_the_published_hybrid_of_generate(few, base_guidance):
    pipe, distilled, run = few
    pair = dtviz.Pair(pipe, distilled, timesteps=(999, 749, 499, 249))
    settings = {"method": "hybrid", "base_guidance": base_guidance, "handover": "distilled-scheduler"}
    expected = dtviz.generate(pair, "dog", seeds=[3], **settings)
    with (
        dtviz.hybrid(pipe, distilled, base_guidance=base_guidance, guidance=0.0) as facts,
        dtviz.capture(pipe) as trace,
    ):
        ours = run(guidance_scale=7.0 if base_guidance else 0.0)
    torch.testing.assert_close(ours, expected.final, **CLOSE)
    torch.testing.assert_close(trace.x0, expected.x0, **CLOSE)
    assert facts.nfe == expected.provenance["nfe"]


def test_each_model_has_its_own_guidance(few):
    """A call with guidance doubles its batch; an unguided step evaluates the half with the prompt."""
    pipe, distilled, run = few
    with dtviz.hybrid(pipe, distilled, base_guidance=0.0):
        plain = run()
    with dtviz.hybrid(pipe, distilled, base_guidance=1.0, guidance=1.0) as facts:
        torch.testing.assert_close(run(guidance_scale=5.0), plain, **CLOSE)
    assert facts.nfe == {"base": 1, "distilled": 3}
    with dtviz.hybrid(pipe, distilled, base_guidance=5.0, guidance=5.0) as facts:
        guided = run(guidance_scale=2.0)
    with dtviz.hybrid(pipe, distilled, base_guidance=None):
        torch.testing.assert_close(run(guidance_scale=5.0), guided, atol=1e-4, rtol=1e-3)
    assert facts.nfe == {"base": 2, "distilled": 6}
    with (
        pytest.raises(ValueError, match="base guidance 3 needs .* a guidance_scale above 1"),
        dtviz.hybrid(pipe, distilled, base_guidance=3.0),
    ):
        run()
    assert type(pipe.scheduler).__mro__[0] is LCMScheduler
    assert run().isfinite().all()


def test_a_distilled_model_with_guidance_as_an_input(few):
    """LCM's own network beside a base without that input."""
    pipe, _, run = few
    distilled, images = UNet2DConditionModel.from_config(pipe.unet.config, time_cond_proj_dim=8), []
    for guidance in (2.0, 8.0):
        with dtviz.hybrid(pipe, distilled, guidance=guidance) as facts:
            images.append(run())
    assert not torch.allclose(*images)
    assert facts.nfe == {"base": 1, "distilled": 3}


def test_a_lora_is_switched_off_for_the_base(few):
    pipe, _, run = few
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False)
    pipe.unet.add_adapter(config, adapter_name="fast")
    pipe.unet.disable_adapters()
    base = run()
    with dtviz.hybrid(pipe, "fast"):
        ours = run()
    assert torch.equal(run(), base)

    def switch(pipe, step, timestep, kwargs):
        pipe.unet.enable_adapters()
        return {}

    torch.testing.assert_close(ours, run(callback_on_step_end=switch))
    assert not torch.allclose(ours, base)


def test_every_call_in_the_block_is_a_hybrid_also_after_another_scheduler(few):
    pipe, distilled, run = few
    signature = inspect.signature(pipe.scheduler.step)
    with dtviz.hybrid(pipe, distilled) as facts:
        assert inspect.signature(pipe.scheduler.step) == signature  # pipelines look in it for `generator`
        first = run()
        torch.testing.assert_close(run(), first)
        assert facts.steps_run == {"base": 1, "distilled": 3}
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        run(timesteps=None, num_inference_steps=6)
        assert facts.steps_run == {"base": 1, "distilled": 5}
    assert facts.nfe == {"base": 3, "distilled": 11}
    assert type(pipe.scheduler) is DDIMScheduler and type(pipe.scheduler).__mro__[1] is not DDIMScheduler


def test_a_hybrid_without_a_step_of_the_distilled_model_warns(few):
    pipe, distilled, run = few
    with (
        pytest.warns(UserWarning, match="ran no step of the distilled model: the call made 4 steps"),
        dtviz.hybrid(pipe, distilled, k=4),
    ):
        run()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "k=0 must be an integer of at least 1"),
        ({"k": True}, "k=True"),
        ({"k": 1.5}, "k=1.5"),
        ({"base_guidance": -1.0}, "base_guidance=-1.0"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"distilled": "fast"}, r"distilled='fast' is not an adapter .* which has \[\]"),
        ({"distilled": 3}, "distilled is a int"),
        ({"distilled": tiny_unet(2).half()}, "differ in dtype: torch.float16 and torch.float32"),
        ({"pipe": object()}, "without a unet or transformer"),
    ],
)
def test_bad_input_is_refused_before_the_block(few, options, words):
    pipe, distilled, _ = few
    with pytest.raises(ValueError, match=words), dtviz.hybrid(**{"pipe": pipe, "distilled": distilled} | options):
        pytest.fail("the block ran")
    assert type(pipe.scheduler) is LCMScheduler
