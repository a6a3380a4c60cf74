"""dtviz.hybrid around people's own calls, against diffusers' own way to change the denoiser in mid-run."""

import copy
import inspect

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, LCMScheduler, UNet2DConditionModel
from peft import LoraConfig

import dtviz

from .conftest import tiny_unet
from .tiny import PIPELINES


def denoiser(pipe) -> str:
    return "unet" if getattr(pipe, "unet", None) is not None else "transformer"


def another(module: torch.nn.Module) -> torch.nn.Module:
    """The same network with other weights."""
    torch.manual_seed(5)
    student = copy.deepcopy(module)
    for parameter in student.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) * parameter.abs().mean()
    return student


def call(tiny, **options) -> torch.Tensor:
    output = tiny.pipe(**tiny.call, generator=torch.Generator().manual_seed(0), output_type=tiny.latent, **options)
    return getattr(output, tiny.field)


FAMILIES = (
    "sd", "sd-guided", "sd-controlnet", "sdxl", "sdxl-img2img", "sdxl-inpaint", "sdxl-controlnet", "sd3", "flux", "qwenimage",
    "sana",
)  # fmt: skip


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_student_takes_over_after_k_steps(family, k):
    """The oracle puts the student in the pipeline's own place from a callback at the end of step k."""
    tiny = PIPELINES[family]()
    name = denoiser(tiny.pipe)
    base = getattr(tiny.pipe, name)
    student = another(base)
    plain = call(tiny)

    def swap(pipe, step, timestep, kwargs):
        if step == k - 1:
            setattr(pipe, name, student)
        return {}

    expected = call(tiny, callback_on_step_end=swap)
    setattr(tiny.pipe, name, base)
    kind = type(tiny.pipe.scheduler)
    with dtviz.hybrid(tiny.pipe, student, k=k, base_guidance=None) as run:
        ours = call(tiny)
    torch.testing.assert_close(ours, expected)
    assert not torch.allclose(ours, plain, atol=1e-4)
    assert run.steps_run == {"base": k, "distilled": tiny.steps - k}
    assert torch.equal(call(tiny), plain)  # the block leaves nothing behind
    assert type(tiny.pipe.scheduler) is kind
    assert "forward" not in vars(base)


@pytest.fixture
def few(pipe):
    """The tiny pipeline as a student of it is run, and the call."""
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=1000)

    def run(guidance_scale: float = 0.0, **options) -> torch.Tensor:
        options = {"timesteps": [999, 749, 499, 249]} | options
        generator = torch.Generator().manual_seed(3)
        return pipe("dog", guidance_scale=guidance_scale, generator=generator, output_type="latent", **options).images

    return pipe, tiny_unet(2), run


@pytest.mark.parametrize("base_guidance", [0.0, 3.0])
def test_it_is_the_published_hybrid_of_generate(few, base_guidance):
    pipe, student, run = few
    pair = dtviz.Pair(pipe, student, timesteps=(999, 749, 499, 249))
    settings = {"method": "hybrid", "base_guidance": base_guidance, "handover": "distilled-scheduler"}
    expected = dtviz.generate(pair, "dog", seeds=[3], **settings)
    with dtviz.hybrid(pipe, student, base_guidance=base_guidance, guidance=0.0) as told, dtviz.capture(pipe) as trace:
        ours = run(guidance_scale=7.0 if base_guidance else 0.0)
    torch.testing.assert_close(ours, expected.final, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trace.x0, expected.x0, atol=1e-5, rtol=1e-4)
    assert told.nfe == expected.provenance["nfe"]


def test_each_model_has_its_own_guidance(few):
    """A call with guidance doubles its batch; the student's half is the one without."""
    pipe, student, run = few
    with dtviz.hybrid(pipe, student, base_guidance=0.0):
        plain = run()
    with dtviz.hybrid(pipe, student, base_guidance=1.0, guidance=1.0) as told:
        torch.testing.assert_close(run(guidance_scale=5.0), plain, atol=1e-5, rtol=1e-4)
    assert told.nfe == {"base": 1, "distilled": 3}
    with dtviz.hybrid(pipe, student, base_guidance=5.0, guidance=5.0) as told:
        guided = run(guidance_scale=2.0)
    with dtviz.hybrid(pipe, student, base_guidance=None):
        torch.testing.assert_close(run(guidance_scale=5.0), guided, atol=1e-4, rtol=1e-3)
    assert told.nfe == {"base": 2, "distilled": 6}


def test_guidance_needs_a_call_with_guidance(few):
    pipe, student, run = few
    with (
        pytest.raises(ValueError, match="base guidance 3 needs .* a guidance_scale above 1"),
        dtviz.hybrid(pipe, student, base_guidance=3.0),
    ):
        run()
    assert type(pipe.scheduler).__mro__[0] is LCMScheduler
    assert run().isfinite().all()


def test_a_student_that_takes_its_guidance_as_an_input(few):
    """LCM's own network beside a base without that input."""
    pipe, _, run = few
    student = UNet2DConditionModel.from_config(pipe.unet.config, time_cond_proj_dim=8)
    made = []
    for guidance in (2.0, 8.0):
        with dtviz.hybrid(pipe, student, guidance=guidance) as told:
            made.append(run())
    assert not torch.allclose(*made)
    assert told.nfe == {"base": 1, "distilled": 3}


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
    pipe, student, run = few
    with dtviz.hybrid(pipe, student) as told:
        first = run()
        torch.testing.assert_close(run(), first)
        assert told.steps_run == {"base": 1, "distilled": 3}
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        run(timesteps=None, num_inference_steps=6)
        assert told.steps_run == {"base": 1, "distilled": 5}
    assert told.nfe == {"base": 3, "distilled": 11}
    assert type(pipe.scheduler) is DDIMScheduler and type(pipe.scheduler).__mro__[1] is not DDIMScheduler


def test_a_hybrid_without_the_student_warns(few):
    pipe, student, run = few
    with (
        pytest.warns(UserWarning, match="ran no student step: the call made 4 steps"),
        dtviz.hybrid(pipe, student, k=4),
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
        ({"student": "fast"}, r"student='fast' is not an adapter .* which has \[\]"),
        ({"student": 3}, "student is a int"),
        ({"student": tiny_unet(2).half()}, "differ in dtype: torch.float16 and torch.float32"),
    ],
)
def test_bad_input_is_refused_before_the_block(few, options, words):
    pipe, student, _ = few
    with pytest.raises(ValueError, match=words), dtviz.hybrid(pipe, **{"student": student} | options):
        pytest.fail("the block ran")
    assert type(pipe.scheduler) is LCMScheduler


@pytest.mark.parametrize("k", [1, 2])
def test_a_second_order_scheduler_is_not_cut_within_a_step(pipe, k):
    """Heun's step k ends at its call 2k - 1 from the start, where the oracle's callback puts the student in."""
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    base, student = pipe.unet, tiny_unet(2)

    def run(**options) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return pipe(
            "dog", guidance_scale=0, num_inference_steps=4, generator=generator, output_type="latent", **options
        )[0]

    def swap(pipe, call, timestep, kwargs):
        if call == 2 * k - 1:
            pipe.unet = student
        return {}

    expected = run(callback_on_step_end=swap)
    pipe.unet = base
    with dtviz.hybrid(pipe, student, k=k) as told:
        torch.testing.assert_close(run(), expected)
    assert told.steps_run == {"base": k, "distilled": 4 - k}
    assert told.nfe == {"base": 2 * k, "distilled": 7 - 2 * k}


def test_what_is_no_pipeline_is_refused(few):
    with pytest.raises(ValueError, match="without a unet or transformer"):
        dtviz.hybrid(object(), few[1]).__enter__()


def test_the_schedulers_signature_is_kept(few):
    """Pipelines look in it for `generator`, and drop the seed otherwise."""
    pipe, student, _ = few
    before = inspect.signature(pipe.scheduler.step), inspect.signature(pipe.scheduler.set_timesteps)
    with dtviz.hybrid(pipe, student):
        assert (inspect.signature(pipe.scheduler.step), inspect.signature(pipe.scheduler.set_timesteps)) == before
