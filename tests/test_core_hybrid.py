"""`hybrid` around ordinary pipeline calls, against diffusers' own way to change the denoiser in mid-run."""

import copy
import functools
import inspect
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, LCMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import MultiIPAdapterImageProjection
from torch.nn import Module

import dtviz

from .tiny import PIPELINES, Tiny, add_lora, tiny_unet

FAMILIES = (
    "sd", "sd-guided", "sd-controlnet", "sdxl", "sdxl-img2img", "sdxl-inpaint", "sd3", "flux", "qwenimage", "sana", "wan22",
    "sd-heun",
)  # fmt: skip
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def other_weights(network: Module) -> Module:
    """A copy that denoises otherwise."""
    distilled = copy.deepcopy(network)
    torch.manual_seed(5)
    for parameter in distilled.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) * parameter.abs().mean()
    return distilled


def family_of(name: str) -> Tiny:
    """A tiny pipeline. Wan 2.2 has a second denoiser, which denoises its last two of four steps. Heun's steps take two calls."""
    tiny = PIPELINES[name.removesuffix("22").removesuffix("-heun")]()
    if name == "sd-heun":
        tiny.pipe.scheduler = HeunDiscreteScheduler.from_config(tiny.pipe.scheduler.config)
    if name == "wan22":
        second = type(tiny.pipe.transformer).from_config(tiny.pipe.transformer.config).eval()
        tiny.pipe.register_modules(transformer_2=second)
        tiny.pipe.register_to_config(boundary_ratio=0.8)
    return tiny


@pytest.mark.parametrize(("family", "k"), [*((name, 1) for name in FAMILIES), ("sd", 2), ("sd-heun", 2), ("wan22", 3)])
def test_the_distilled_model_takes_over_after_k_steps(family, k):
    """The oracle puts it in the pipeline's own place from a callback at the end of step k."""
    tiny = family_of(family)
    base = getattr(tiny.pipe, tiny.denoiser)
    distilled = other_weights(base)
    plain = tiny.run(tiny.latent)
    second = getattr(tiny.pipe, "transformer_2", None)

    def swap(pipe, step, timestep, kwargs):
        if step == (2 * k - 1 if family == "sd-heun" else k - 1):
            setattr(pipe, tiny.denoiser, distilled)
            if second is not None:
                pipe.transformer_2 = distilled
        return {}

    expected = tiny.run(tiny.latent, callback_on_step_end=swap)
    setattr(tiny.pipe, tiny.denoiser, base)
    if second is not None:
        tiny.pipe.transformer_2 = second
    kind = type(tiny.pipe.scheduler)
    with dtviz.hybrid(tiny.pipe, distilled, k=k, base_guidance=None) as run:
        ours = tiny.run(tiny.latent)
    torch.testing.assert_close(ours, expected)
    assert not torch.allclose(ours, plain, atol=1e-4)
    assert run.steps_run == {"base": k, "distilled": tiny.steps - k}
    assert family != "sd-heun" or run.nfe == {"base": 2 * k, "distilled": 7 - 2 * k}
    assert torch.equal(tiny.run(tiny.latent), plain)  # the block leaves nothing behind
    assert type(tiny.pipe.scheduler) is kind
    assert "forward" not in vars(base)


@pytest.fixture
def few(pipe):
    """The tiny pipeline with a distilled model's scheduler, that model, and the call."""
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=1000)

    def run(guidance_scale: float = 0.0, **options) -> torch.Tensor:
        options = {"timesteps": [999, 749, 499, 249], "output_type": "latent"} | options
        generator = torch.Generator().manual_seed(3)
        return pipe("dog", generator=generator, guidance_scale=guidance_scale, **options).images

    return pipe, tiny_unet(2), run


@pytest.mark.parametrize("base_guidance", [0.0, 3.0])
def test_it_is_the_published_hybrid_of_generate(few, base_guidance):
    pipe, distilled, run = few
    pair = dtviz.Pair(pipe, distilled, timesteps=(999, 749, 499, 249))
    settings = {"method": "hybrid", "base_guidance": base_guidance, "handover": "distilled-scheduler"}
    expected = dtviz.generate(pair, "dog", seeds=[3], **settings)
    run_hybrid = dtviz.hybrid(pipe, distilled, base_guidance=base_guidance, guidance=0.0)
    with run_hybrid as facts, dtviz.capture(pipe) as trace:
        ours = run(guidance_scale=7.0 if base_guidance else 0.0)
    torch.testing.assert_close(ours, expected.final, **CLOSE)
    torch.testing.assert_close(trace.x0, expected.x0, **CLOSE)
    assert facts.nfe == expected.provenance["nfe"]


def test_guidance_of_the_base_needs_a_guided_call(few):
    pipe, distilled, run = few
    words = "base guidance 3 needs .* a guidance_scale above 1"
    with pytest.raises(ValueError, match=words), dtviz.hybrid(pipe, distilled, base_guidance=3.0):
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


def use_adapters(pipe, *names: str) -> dict:
    pipe.unet.enable_adapters() if names else pipe.unet.disable_adapters()
    if names:
        pipe.unet.set_adapters(list(names))
    return {}


def switched(pipe, run, first: list[str], later: list[str]) -> torch.Tensor:
    """Switch adapters after the first step of a call by diffusers' own means."""
    use_adapters(pipe, *first)
    return run(callback_on_step_end=lambda *_: use_adapters(pipe, *later))


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("state", ["alone", "style active", "style fused", "both fused", "style loaded inside"])
def test_a_lora_is_the_distilled_model_and_no_bit_of_the_network_changes(few, state, fuse):
    """Other LoRAs act in both roles. The oracle switches adapters after its first step."""
    pipe, _, run = few
    add_lora(pipe.unet, "fast", seed=0)
    own = ["style"] if "style" in state or "both" in state else []
    if own:
        add_lora(pipe.unet, "style", seed=1)
    expected = switched(pipe, run, own, [*own, "fast"])
    use_adapters(pipe, *own)
    if "fused" in state:
        pipe.unet.fuse_lora(adapter_names=["style", "fast"] if "both" in state else ["style"])
    if "inside" in state:
        use_adapters(pipe, "fast")
        pipe.unet.delete_adapters("style")
        use_adapters(pipe)
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    with dtviz.hybrid(pipe, "fast", fuse=fuse):
        if "inside" in state:
            add_lora(pipe.unet, "style", seed=1)
            use_adapters(pipe, "style")
        ours = [run() for _ in range(2)]
    with pytest.raises(KeyboardInterrupt), dtviz.hybrid(pipe, "fast", fuse=fuse):
        run(callback_on_step_end=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert torch.equal(*ours)
    torch.testing.assert_close(ours[0], expected, atol=1e-4, rtol=1e-3)
    after = pipe.unet.state_dict()
    assert [name for name in after if name in weights] == list(weights)
    assert all(torch.equal(after[name], value) for name, value in weights.items())
    assert not any("forward" in vars(module) for module in pipe.unet.modules())
    assert pipe.unet.active_adapters() == (own or ["fast"])


def test_the_pipelines_adapter_methods_act_inside_the_block(few):
    pipe, _, run = few
    add_lora(pipe.unet, "fast", seed=0)
    add_lora(pipe.unet, "style", seed=1)
    expected = switched(pipe, run, [], ["fast"])
    pipe.fuse_lora(components=["unet"], adapter_names=["style"])
    pipe.disable_lora()
    with pytest.raises(ValueError, match="'fast' is no longer an adapter of the base"), dtviz.hybrid(pipe, "fast"):
        pipe.unfuse_lora(components=["unet"])
        torch.testing.assert_close(run(), expected, atol=1e-4, rtol=1e-3)
        pipe.set_adapters(["style"])
        pipe.delete_adapters("fast")
        run()


def test_an_adapter_of_another_kind_is_left_to_peft(few):
    """DoRA scales the columns of the weight. Fused, it is not switched off exactly."""
    pipe, _, run = few
    add_lora(pipe.unet, "fast", seed=0, use_dora=True)
    latents = []
    for fuse in (True, False):
        with dtviz.hybrid(pipe, "fast", fuse=fuse):
            latents.append(run())
    assert torch.equal(*latents)
    torch.testing.assert_close(latents[0], switched(pipe, run, [], ["fast"]), **CLOSE)
    pipe.unet.fuse_lora()
    words = r"fast is fused into a .* layer.*: call unfuse_lora\(\)"
    with pytest.raises(ValueError, match=words), dtviz.hybrid(pipe, "fast"):
        pytest.fail("the block ran")


def test_fused_or_not_a_calls_scale_hooks_and_compilation_are_obeyed(few, monkeypatch):
    pipe, distilled, run = few
    add_lora(pipe.unet, "fast", seed=0)
    calls, latents, scaled = [], [], {"cross_attention_kwargs": {"scale": 0.5}}
    for fuse in (False, True):
        with dtviz.hybrid(pipe, "fast", fuse=fuse):
            latents.append((run(), run(**scaled)))
    for left, fused in zip(*latents, strict=True):
        torch.testing.assert_close(fused, left, **CLOSE)
    assert not torch.allclose(*latents[0], **CLOSE)
    with pytest.raises(ValueError, match="'fast' is in use by a block"), dtviz.hybrid(pipe, "fast"):
        dtviz.hybrid(pipe, "fast").__enter__()
    layer = pipe.unet.mid_block.resnets[0].conv1
    with layer.register_forward_hook(lambda *_: calls.append(1)), dtviz.hybrid(pipe, "fast"):
        torch.testing.assert_close(run(), latents[0][0], **CLOSE)
    assert len(calls) == 4
    monkeypatch.setattr("dtviz.core.adapters.CPU_MEMORY", 0)
    with pytest.warns(UserWarning, match="fuse=True would copy .* left to peft"), dtviz.hybrid(pipe, "fast"):
        assert torch.equal(run(), latents[0][0])
    monkeypatch.undo()
    with dtviz.hybrid(pipe, distilled):
        expected = {"fast": latents[1][0], distilled: run()}
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    for network, latent in expected.items():
        with torch.compiler.set_stance("force_eager"), dtviz.hybrid(pipe, network):
            assert torch.equal(run(), latent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fusing_a_lora_changes_only_the_rounding(few, dtype):
    pipe, _, run = few
    add_lora(pipe.unet, "fast", seed=0)
    pipe.to(dtype)
    latents = []
    for fuse in (True, False):
        with dtviz.hybrid(pipe, "fast", fuse=fuse):
            latents.append(run().float())
    change = (latents[0] - latents[1]).abs().max() / latents[1].abs().max()
    assert 0 < change < 8 * torch.finfo(dtype).eps


def test_nothing_walks_the_modules_between_steps(few, monkeypatch):
    """`device` and `dtype` of a diffusers model walk all of them. On SDXL each takes a tenth of an evaluation's time."""
    pipe, distilled, run = few
    add_lora(pipe.unet, "fast", seed=0)
    walks, counts = [], []
    for name in ("named_modules", "_named_members"):
        method = getattr(Module, name)
        monkeypatch.setattr(Module, name, lambda *args, m=method, **kwargs: walks.append(1) or m(*args, **kwargs))
    pair = dtviz.Pair(pipe, "fast", timesteps=(999, 749, 499, 249))
    for network in (distilled, "fast"):
        with dtviz.hybrid(pipe, network):
            run(callback_on_step_end=lambda *_: counts.append(len(walks)) or {})
        options = {"on_call": lambda *_: counts.append(len(walks)), "method": "hybrid", "seeds": [0]}
        dtviz.generate(replace(pair, distilled=network), "dog", **options)
    assert len(counts) == 16 and walks
    assert [len(set(counts[i : i + 4])) for i in range(0, 16, 4)] == [1] * 4


class LuminaPipeline:
    """A pipeline of one's own, without diffusers' base class. Like diffusers' of this name it puts the prompt first."""

    def __init__(self) -> None:
        self.unet, self.scheduler = tiny_unet(1), DDIMScheduler()

    @torch.no_grad()
    def __call__(self, guidance_scale: float) -> torch.Tensor:
        generator, n = torch.Generator().manual_seed(0), 1 + (guidance_scale > 1)
        x, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(2, 4, 16, generator=generator)
        self.scheduler.set_timesteps(4)
        for t in self.scheduler.timesteps:
            outputs = self.unet(torch.cat([x] * n), t, text[:n]).sample
            output = outputs[-1:] + guidance_scale * (outputs[:1] - outputs[-1:])
            x = self.scheduler.step(output, t, x).prev_sample
        return x


@pytest.mark.parametrize("kind", ["stable diffusion", "cogvideox", "of one's own"])
def test_each_model_has_its_own_guidance(few, kind):
    """An unguided step of a guided call evaluates the half with the prompt. The last two do not say what they double."""
    pipe, distilled, run = few
    if kind == "cogvideox":
        tiny = PIPELINES[kind]()
        pipe, run = tiny.pipe, lambda scale: tiny.run("latent", guidance_scale=scale)
        distilled = other_weights(pipe.transformer)
    elif kind == "of one's own":
        pipe = run = LuminaPipeline()
    latents = []
    for scale, options in (
        (1.0, {}), (7.0, {"base_guidance": 1.0, "guidance": 0.0}),
        (3.0, {"base_guidance": None}), (7.0, {"base_guidance": 3.0, "guidance": 3.0}),
    ):  # fmt: skip
        with dtviz.hybrid(pipe, distilled, **options) as facts:
            latents.append(run(scale))
        assert facts.nfe == ({"base": 1, "distilled": 3} if len(latents) < 3 else {"base": 2, "distilled": 6})
    for ours, expected in (latents[1::-1], latents[:1:-1]):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(latents[0], latents[2], atol=1e-2)


@pytest.mark.parametrize("kind", ["InstructPix2Pix", "PAG", "qwenimage"])
def test_guidance_by_more_evaluations_can_be_left_to_the_pipeline(few, kind):
    words, nfe = "3 inputs", {"base": 3, "distilled": 9}
    if kind == "qwenimage":
        tiny, words, nfe = PIPELINES[kind](), "calls its denoiser 2 times in a step", {"base": 2, "distilled": 6}
        pipe, run = tiny.pipe, lambda: tiny.run("latent")
    else:
        parts = few[0].components | ({} if kind == "PAG" else {"unet": tiny_unet(1, in_channels=8)})
        pipe = getattr(diffusers, f"StableDiffusion{kind}Pipeline")(**parts, requires_safety_checker=False)
        options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
        options |= {} if kind == "PAG" else {"image": torch.rand(1, 3, 16, 16)}
        run = functools.partial(pipe, "dog", **options)
    distilled = copy.deepcopy(getattr(pipe, "unet", None) or pipe.transformer)
    with pytest.raises(NotImplementedError, match=f"{words}.*by base_guidance=None and"), dtviz.hybrid(pipe, distilled):
        run()
    with dtviz.hybrid(pipe, distilled, base_guidance=None) as facts:
        run()
    assert (facts.steps_run, facts.nfe) == ({"base": 1, "distilled": 3}, nfe)


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
    words = "ran no step of the distilled model: the call made 4 steps"
    with pytest.warns(UserWarning, match=words), dtviz.hybrid(pipe, distilled, k=4):
        run()


def test_bad_input_is_refused_before_the_block(few):
    pipe, distilled, _ = few
    for options, words in (
        ({"k": 0}, "k=0 must be an integer of at least 1"),
        ({"k": True}, "k=True"),
        ({"k": 1.5}, "k=1.5"),
        ({"base_guidance": -1.0}, "base_guidance=-1.0"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"distilled": "fast"}, r"distilled='fast' is not an adapter .* which has \[\]"),
        ({"distilled": 3}, "distilled is a int"),
        ({"distilled": tiny_unet(2).half()}, "differ in dtype: torch.float16 and torch.float32"),
        ({"pipe": object()}, "without a unet or transformer"),
    ):
        with pytest.raises(ValueError, match=words), dtviz.hybrid(**{"pipe": pipe, "distilled": distilled} | options):
            pytest.fail("the block ran")
    pipe.unet.encoder_hid_proj = MultiIPAdapterImageProjection([Module()])
    words = "distilled cannot see the image prompts of the base's IP-Adapter"
    with pytest.raises(ValueError, match=words), dtviz.hybrid(pipe, distilled):
        pytest.fail("the block ran")
    assert type(pipe.scheduler) is LCMScheduler
