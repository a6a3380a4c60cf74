"""Sliders and customisations trained on tiny random pairs: against the sampler, against the formulas, and without a trace."""

import inspect
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import dtviz
from dtviz.control import train_customisation, train_dreambooth, train_slider
from dtviz.control.conditions import conditions, predict, schedule
from dtviz.control.customise import _timesteps
from dtviz.control.optimise import generator
from dtviz.control.sliders import rollout
from dtviz.control.tuned import ATTENTION, CROSS, lora, matching, weights
from dtviz.controls import DELTA, DOWN, UP
from dtviz.decode import decode_latents, encode, reconstruct

from .conftest import tiny_tokenizer, tiny_unet

TEXTS = {"target": ["a dog", "a cat"], "positive": "happy", "negative": "sad"}
QUICK = {"iterations": 2, "batch_size": 2, "progress": False}


@pytest.fixture
def sdxl() -> dtviz.Pair:
    """Stable Diffusion XL's classes at tiny size, with two text encoders, pooled states and time ids."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=16,
    )  # fmt: skip
    config = {
        "cross_attention_dim": 32,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * 6 + 16,
    }
    base, student = (UNet2DConditionModel.from_config(tiny_unet(0).config, **config).eval() for _ in range(2))
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, force_upcast=False, **blocks)
    pipe = StableDiffusionXLPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=base,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing"),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    scheduler = EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing")
    return dtviz.Pair(pipe, student, distilled_scheduler=scheduler, base_steps=6, base_guidance=3.0, size=(16, 16))


@pytest.fixture
def one_network(pipe) -> dtviz.Pair:
    """A pair whose student is a LoRA on the base, switched off as `dtviz.load` leaves it."""
    torch.manual_seed(4)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=list(CROSS), init_lora_weights=False), "student")
    pipe.unet.disable_adapters()
    pipe.unet.requires_grad_(False)
    scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return dtviz.Pair(pipe, "student", distilled_scheduler=scheduler, base_steps=8, base_guidance=3.0)


def calls_of(pair: dtviz.Pair, on: str):
    base = on == "base"
    return schedule(pair, on, steps=pair.base_steps if base else pair.steps, guidance=3.0 if base else pair.guidance)


def shape_of(pair: dtviz.Pair) -> list:
    """Everything about a pair's networks that a training could leave changed."""
    nets = [pair.base] if isinstance(pair.distilled, str) else [pair.base, pair.distilled]
    state = [(name, value.clone()) for net in nets for name, value in net.state_dict().items()]
    names = [[(name, type(module)) for name, module in net.named_modules()] for net in nets]
    flags = [[(name, p.requires_grad, p.grad is None) for name, p in net.named_parameters()] for net in nets]
    trace = [dtviz.generate(pair, "a dog", method=on, seeds=[1]).final for on in ("base", "distilled")]
    return [state, names, flags, trace]


def assert_same(before: list, after: list) -> None:
    assert before[1:3] == after[1:3]
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(before[0], after[0], strict=True))
    assert all(torch.equal(x, y) for x, y in zip(before[3], after[3], strict=True))


# What the denoiser is given, and the rollout, against the library's own sampler


@pytest.mark.parametrize("on", ["base", "distilled"])
@pytest.mark.parametrize("kind", ["pair", "sdxl", "one_network"])
def test_a_rollout_to_the_end_is_the_samplers_own(kind, on, request):
    """Bit by bit the same inputs: text states, pooled states, guidance, timesteps, noise. Only batches' order of sums differs."""
    pair = request.getfixturevalue(kind)
    expected = dtviz.generate(pair, "a dog", method=on, seeds=[7], base_guidance=3.0).final
    known = conditions(pair, ["a dog"], role=on)
    calls = calls_of(pair, on)
    with lora(pair, on=on, modules=ATTENTION, rank=2, alpha=1.0, seed=0) as tuned:
        found = rollout(tuned, calls, len(calls), known, ["a dog"], torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found.std() > 0.1


def test_unconditional_rows_are_the_pipelines_own(sdxl):
    known = conditions(sdxl, ["a dog", "a cat"])
    assert known.of[""]["encoder_hidden_states"].abs().sum() == 0  # SDXL's, not the empty text's states
    rows = known.rows(["a cat", "", "a cat"])
    assert rows["encoder_hidden_states"].shape == (3, 16, 32)
    assert rows["added_cond_kwargs"]["text_embeds"].shape == (3, 16)
    assert torch.equal(rows["encoder_hidden_states"][0], rows["encoder_hidden_states"][2])
    assert known.shape == (4, 8, 8)


def test_a_student_that_takes_its_guidance_as_an_input_gets_it(pair):
    student = UNet2DConditionModel.from_config(pair.base.config, time_cond_proj_dim=8).eval()
    pair = replace(pair, distilled=student, guidance=4.0)
    known = conditions(pair, ["a dog"], role="distilled")
    expected = pair.pipeline.get_guidance_scale_embedding(torch.tensor([3.0]), embedding_dim=8)
    assert torch.equal(known.of["a dog"]["timestep_cond"], expected)
    given = conditions(pair, ["a dog"], role="distilled", guidance=8.0)
    assert not torch.equal(given.of["a dog"]["timestep_cond"], expected)
    assert conditions(pair, ["a dog"]).of["a dog"]["timestep_cond"] is None  # not the base
    assert train_slider(pair, name="x", on="distilled", **TEXTS, **QUICK).modules


# The slider's loss


@pytest.mark.parametrize("on", ["base", "distilled"])
@pytest.mark.parametrize("kind", ["pair", "sdxl", "one_network"])
def test_the_first_loss_is_the_formulas(kind, on, request):
    """At first the slider changes nothing, so that the loss is eta² mean((e(pos) - e(neg))²), at the rollout's x_t."""
    pair = request.getfixturevalue(kind)
    made = train_slider(pair, name="x", on=on, eta=3.0, **TEXTS, **(QUICK | {"iterations": 1}))
    draws = generator(0, 0)
    rows = torch.randint(2, (2,), generator=draws).tolist()
    calls = calls_of(pair, on)
    step = int(torch.randint(len(calls), (), generator=draws))
    known = conditions(pair, ["a dog", "a cat", "happy", "sad"], role=on)
    with lora(pair, on=on, modules=ATTENTION, rank=2, alpha=1.0, seed=0) as tuned, torch.no_grad():
        prompts = [TEXTS["target"][row] for row in rows]
        x_t = rollout(tuned, calls, step, known, prompts, draws)
        x_t = calls[step].scheduler.scale_model_input(x_t, calls[step].timestep)
        ends = [predict(tuned.network, x_t, calls[step].timestep, known.rows([end] * 2)) for end in ("happy", "sad")]
    assert made.facts["loss"] == pytest.approx(9 * F.mse_loss(*ends).item(), rel=1e-4)


def test_both_directions_are_learnt(pair):
    """After training, scale 1 moves the prediction along e(pos) - e(neg), and scale -1 against it."""
    options = {"iterations": 60, "batch_size": 4, "lr": 0.02, "alpha": 4.0, "steps": 2, "progress": False}
    made = train_slider(pair, name="x", eta=1.0, **TEXTS, **options)
    known = conditions(pair, ["a dog", "happy", "sad"])
    x_t = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(9))

    def answer(text: str, scale: float) -> torch.Tensor:
        with dtviz.control.attach(pair.base, made, scale), torch.no_grad():
            return predict(pair.base, x_t, torch.tensor(999), known.rows([text] * 16))

    aim = answer("happy", 0) - answer("sad", 0)
    for scale in (1, -1):
        moved = answer("a dog", scale) - answer("a dog", 0)
        assert F.cosine_similarity(scale * aim.flatten(), moved.flatten(), dim=0) > 0.5


def test_no_input_is_evaluated_twice(pair, monkeypatch):
    seen, forward = [], UNet2DConditionModel.forward

    def counting(self, sample, timestep, encoder_hidden_states, **kwargs):
        for x, text in zip(sample, encoder_hidden_states, strict=True):
            seen.append((float(timestep), x.sum().item(), text.sum().item(), torch.is_grad_enabled()))
        return forward(self, sample, timestep, encoder_hidden_states, **kwargs)

    conditions(pair, ["a dog", "a cat", "happy", "sad"])
    monkeypatch.setattr(UNet2DConditionModel, "forward", counting)
    train_slider(pair, name="x", **TEXTS, **(QUICK | {"iterations": 4}))
    seen = seen[2 * 4 :]  # after the look at each prompt
    steps = [int(torch.randint(8, (), generator=_after_rows(i))) for i in range(4)]
    # two rows of guidance at each step before, three plain ones, one to be trained, of two samples each
    assert len(seen) == sum(2 * (2 * step + 3 + 1) for step in steps)
    plain = [one[:3] for one in seen if not one[3]]
    assert len(set(plain)) >= len(plain) - 2 * 4  # at most the same prompt as another's in the frozen call


def _after_rows(iteration: int) -> torch.Generator:
    draws = generator(0, iteration)
    torch.randint(2, (2,), generator=draws)
    return draws


# Determinism, interruption, no trace


def test_a_seed_is_a_training(pair):
    first, again, other = (train_slider(pair, name="x", seed=seed, **TEXTS, **QUICK) for seed in (3, 3, 4))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train_slider(pair, name="x", **TEXTS, **QUICK)
    assert torch.equal(torch.rand(3), expected)  # the caller's own random numbers are spared


def test_really_killed_a_training_goes_on_to_the_same_bits(pair, tmp_path):
    options = {"iterations": 55, "batch_size": 1, "steps": 2, "progress": False, **TEXTS}
    path = tmp_path / "slider.state"
    child = os.fork()
    if not child:
        try:
            train_slider(pair, name="x", state=path, **options)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    resumed, undisturbed = (train_slider(pair, name="x", state=state, **options) for state in (path, None))
    assert resumed.fingerprint == undisturbed.fingerprint
    assert resumed.facts == undisturbed.facts


@pytest.mark.parametrize("on", ["base", "distilled"])
@pytest.mark.parametrize("kind", ["pair", "sdxl", "one_network"])
def test_training_leaves_nothing_behind(kind, on, request):
    pair = request.getfixturevalue(kind)
    before = shape_of(pair)
    images = torch.rand(2, 3, 16, 16)
    train_slider(pair, name="x", on=on, **TEXTS, **QUICK)
    train_customisation(pair, images, name="x", prompts="a dog", on=on, full_rank=True, **QUICK)
    train_dreambooth(pair, images, name="x", prompt="q dog", class_prompt="dog", on=on, prior_images=2, **QUICK)
    assert_same(before, shape_of(pair))


@pytest.mark.parametrize("put", [lambda pair: weights(pair, on="base", modules=CROSS), lambda pair: lora(
    pair, on="base", modules=ATTENTION, rank=2, alpha=1.0, seed=0)])  # fmt: skip
def test_an_error_in_training_leaves_nothing_behind(pair, put):
    before = shape_of(pair)
    with pytest.raises(KeyError), put(pair) as tuned, torch.no_grad():
        for parameter in tuned.parameters.values():
            parameter += 1
        raise KeyError("in the middle of it")
    assert_same(before, shape_of(pair))


def test_callers_own_adapters_stay(pipe):
    """Another control that is on while a slider is trained is part of what the slider is trained on, and on afterwards."""
    torch.manual_seed(1)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_q"], init_lora_weights=False), "mine")
    pair = dtviz.Pair(pipe, tiny_unet(2), base_steps=4, base_guidance=3.0)
    before = shape_of(pair)
    made = train_slider(pair, name="x", **TEXTS, **QUICK)
    assert_same(before, shape_of(pair))
    pipe.unet.disable_adapters()
    assert train_slider(pair, name="x", **TEXTS, **QUICK).fingerprint != made.fingerprint


def test_what_is_trained_is_what_the_control_does(pair):
    """The network in training at scale s answers as the plain one with the control attached at s, alpha and all."""
    known = conditions(pair, ["a dog"])
    x_t = torch.randn(2, 4, 8, 8)
    with lora(pair, on="base", modules=("to_q", "conv1"), rank=4, alpha=2.0, seed=0) as tuned, torch.no_grad():
        for name, parameter in tuned.parameters.items():
            parameter.copy_(torch.randn_like(parameter) / 4 if name.endswith(UP) else parameter)
        made = dtviz.control.Control("x", "slider", tuned.tensors())
        tuned.scale(-1.5)
        expected = predict(tuned.network, x_t, 500, known.rows(["a dog"] * 2))
    with dtviz.control.attach(pair.base, made, -1.5), torch.no_grad():
        found = predict(pair.base, x_t, 500, known.rows(["a dog"] * 2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# Customisation


def test_encoding_is_decodings_inverse(pair, sdxl):
    images = torch.rand(3, 3, 16, 16)
    for each in (pair, sdxl):
        torch.testing.assert_close(decode_latents(encode(images, each), each), reconstruct(images, each))
    vae = pair.pipeline.vae
    vae.register_to_config(shift_factor=0.3, scaling_factor=0.7)
    mode = vae.encode(2 * images - 1).latent_dist.mode()
    torch.testing.assert_close(encode(images, pair), (mode - 0.3) * 0.7)
    vae.register_to_config(shift_factor=None, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(decode_latents(encode(images, pair), pair), reconstruct(images, pair))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_first_customisation_loss_is_the_models_own(pair, kind):
    scheduler = DDIMScheduler.from_config(pair.base_scheduler.config, prediction_type=kind)
    student = LCMScheduler.from_config(scheduler.config)
    pair = replace(pair, base_scheduler=scheduler, distilled_scheduler=student)
    images, texts = torch.rand(2, 3, 16, 16), ["a dog", "a cat"]
    made = train_customisation(pair, images, name="x", prompts=texts, **(QUICK | {"iterations": 1}))
    draws, x0 = generator(0, 0), encode(images, pair)
    rows = torch.randint(2, (2,), generator=draws)
    torch.rand(2, generator=draws)  # who loses their prompt: no one
    t = torch.randint(1000, (2,), generator=draws)
    noise = torch.randn(2, 4, 8, 8, generator=draws)
    a = DDPMScheduler.from_config(scheduler.config).alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = a.sqrt() * x0[rows] + (1 - a).sqrt() * noise
    aim = noise if kind == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * x0[rows]
    known = conditions(pair, texts)
    with torch.no_grad():
        found = predict(pair.base, x_t, t, known.rows([texts[row] for row in rows]))
    assert made.facts["loss"] == pytest.approx(F.mse_loss(found, aim).item(), rel=1e-4)


@pytest.mark.parametrize("on", ["base", "distilled"])
@pytest.mark.parametrize("full_rank", [False, True])
def test_a_customisation_lowers_its_loss_on_what_it_is_said_to_change(pair, on, full_rank):
    options = {"prompts": "a dog", "on": on, "full_rank": full_rank, "batch_size": 8, "progress": False}
    images = torch.rand(1, 3, 16, 16)
    first, last = (
        train_customisation(pair, images, name="x", iterations=n, lr=0.05, alpha=8.0, **options) for n in (1, 25)
    )
    assert last.facts["loss"] < 0.98 * first.facts["loss"]
    forms = (DELTA,) if full_rank else (DOWN, UP)
    names = matching(pair.base, CROSS)
    assert set(last.tensors) == {name + form for name in names for form in forms}
    assert all(name.endswith(("attn2.to_k", "attn2.to_v")) for name in names)
    assert dtviz.control.attach(pair, last).__enter__().change[0] > 0


def test_a_full_rank_change_is_the_difference_of_the_weights(pair):
    with weights(pair, on="distilled", modules=CROSS) as tuned, torch.no_grad():
        moved = {}
        for name, parameter in tuned.parameters.items():
            moved[name] = parameter.clone() + torch.randn(parameter.shape)
            parameter.copy_(moved[name])
        tensors = tuned.tensors()
    for name, delta in tensors.items():
        now = pair.distilled.get_parameter(name)
        assert torch.equal(delta, moved[name] - now)


def test_a_student_is_trained_at_its_own_timesteps(pair, sdxl):
    noising = DDPMScheduler.from_config(pair.base_scheduler.config)
    assert _timesteps(pair, "distilled", noising).tolist() == [999, 749, 499, 249]
    assert _timesteps(sdxl, "distilled", noising).tolist() == [999, 749, 499, 249]
    assert _timesteps(pair, "base", noising).tolist() == list(range(1000))


def test_the_prior_is_the_models_own_and_adds_to_the_loss(pair):
    images = torch.rand(2, 3, 16, 16)
    options = {"name": "x", "prompt": "q dog", "class_prompt": "dog", "prior_images": 2} | QUICK | {"iterations": 1}
    none, some, more = (
        train_dreambooth(pair, images, prior_weight=w, **options).facts["loss"] for w in (0.0, 1.0, 3.0)
    )
    assert more - none == pytest.approx(3 * (some - none), rel=1e-4)
    assert some > none


def test_dropped_prompts_are_learnt_unconditionally(pair):
    """With all but none left, the loss is the unconditional one; drop is a share below 1."""
    images = torch.rand(2, 3, 16, 16)
    seen = []

    def look(_, args, kwargs):
        seen.append(kwargs["encoder_hidden_states"])

    empty = conditions(pair, ["a dog"]).of[""]["encoder_hidden_states"]
    hook = pair.base.register_forward_pre_hook(look, with_kwargs=True)
    train_customisation(pair, images, name="x", prompts="a dog", drop=0.5, iterations=10, batch_size=8, progress=False)
    hook.remove()
    rows = torch.cat(seen[1:])
    dropped = (rows == empty).all(dim=(1, 2)).sum()
    assert 20 < dropped < 60  # of 80, half on average: five standard deviations


# Errors, before anything slow


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"on": "student"}, "on='student' is not one of base, distilled"),
        ({"target": []}, "target"),
        ({"target": " "}, "target"),
        ({"positive": ["a", "b", "c"]}, "positive.*one for each target, 2"),
        ({"negative": "happy"}, "positive='happy' and negative are the same"),
        ({"neutral": ["a", ""]}, "neutral"),
        ({"eta": 0}, "eta=0"),
        ({"rank": 0}, "rank=0"),
        ({"iterations": 0}, "iterations=0"),
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 1.5}, "batch_size=1.5"),
        ({"guidance": -1.0}, "guidance=-1.0"),
        ({"modules": ["to_x"]}, "ends in 'to_x'; some end in .*to_k"),
    ],
)
def test_slider_arguments_are_named(pair, changed, named):
    pair.base.register_forward_pre_hook(lambda *_: pytest.fail("the network was run before the arguments were checked"))
    with pytest.raises(ValueError, match=named):
        train_slider(pair, name="x", **(TEXTS | QUICK | changed))


@pytest.mark.parametrize(
    ("images", "changed", "named"),
    [
        (torch.rand(3, 16, 16), {}, "images"),
        (torch.rand(1, 3, 16, 16) * 255, {}, r"within \[0, 1\]"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), {}, "floating point"),
        (torch.rand(2, 3, 16, 16), {"prompts": ["a", "b", "c"]}, "3 texts for 2 images"),
        (torch.rand(2, 3, 16, 16), {"drop": 1.0}, "drop=1.0"),
        (torch.rand(2, 3, 16, 16), {"prior_weight": -1}, "prior_weight=-1"),
        (torch.rand(2, 3, 16, 16), {"modules": ["attn3"]}, "ends in 'attn3'"),
        (torch.rand(2, 3, 16, 16), {"lr": -1.0}, "lr=-1.0"),
    ],
)
def test_customisation_arguments_are_named(pair, images, changed, named):
    pair.base.register_forward_pre_hook(lambda *_: pytest.fail("the network was run before the arguments were checked"))
    with pytest.raises(ValueError, match=named):
        train_customisation(pair, images, name="x", **({"prompts": "a dog"} | QUICK | changed))


def test_other_errors_are_named(pair):
    with pytest.raises(ValueError, match="resize them"):
        train_customisation(pair, torch.rand(1, 3, 32, 32), name="x", prompts="a dog", **QUICK)
    with pytest.raises(ValueError, match="add a rare word"):
        train_dreambooth(pair, torch.rand(1, 3, 16, 16), name="x", prompt="dog", class_prompt="dog", **QUICK)
    pair.base.half()
    with pytest.raises(ValueError, match="float16"):
        train_slider(pair, name="x", **TEXTS, **QUICK)


def test_the_facts_tell_how_it_was_trained(pair, tmp_path):
    made = train_slider(pair, name="smile", licence="MIT", on="distilled", **TEXTS, **QUICK)
    found = dtviz.control.load(made.save(tmp_path / "smile.safetensors"))
    assert (found.name, found.kind) == ("smile", "slider")
    facts = found.facts
    assert facts["prompts"] == facts["neutral"] == ["a dog", "a cat"]
    assert (facts["towards"], facts["licence"], facts["eta"], facts["steps"]) == ("happy", "MIT", 4.0, 4)
    assert facts["trained_on"] == {"pair": "custom", "role": "distilled", "fingerprint": ""}
    told = set(inspect.signature(train_slider).parameters) - {"pair", "name", "on", "state", "progress"}
    assert told <= set(facts)


def test_a_transformer_is_refused(pair):
    from .tiny import PIPELINES

    pipe = PIPELINES["sd3"]().pipe
    other = dtviz.Pair(pipe, pipe.transformer)
    with pytest.raises(NotImplementedError, match="SD3Transformer2DModel is not a UNet"):
        train_slider(other, name="x", **TEXTS, **QUICK)
