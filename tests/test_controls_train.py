"""Controls trained on tiny random pairs: against the sampler, the formulas and torch's AdamW; restored on every exit."""

import inspect
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch.nn import functional as F

import dtviz
from dtviz import controls
from dtviz.controls import train, train_customisation, train_slider
from dtviz.controls.train import ATTENTION, CROSS_ATTENTION, Conditions, iteration_generator, predict, training
from dtviz.core.decode import encode

from . import repos
from .conftest import assert_same, snapshot
from .tiny import PIPELINES, Tiny, _build

TEXTS = {"target": ["a dog", "a cat"], "positive": "happy", "negative": "sad"}
QUICK = {"iterations": 1, "batch_size": 2, "progress": False}
BOTH = pytest.mark.parametrize("on", ["base", "distilled"])


@pytest.fixture
def sdxl() -> dtviz.Pair:
    """Stable Diffusion XL's classes at tiny size, with two text encoders, pooled states and time ids."""
    pipe = _build(lambda: Tiny(repos.sdxl(), {})).pipe
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    distilled = type(pipe.unet).from_config(pipe.unet.config).eval()
    scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    return dtviz.Pair(pipe, distilled, distilled_scheduler=scheduler, size=(16, 16), base_steps=6, base_guidance=3.0)


@BOTH
@pytest.mark.parametrize("kind", ["pair", "sdxl", "one_network"])
def test_a_slider_starts_from_the_samplers_own_x_t_and_the_formula_and_leaves_nothing_behind(kind, on, request):
    """A rollout to the end is the sampler's own, with its text and pooled states, guidance, timesteps and noise.

    At first the slider changes nothing, so that its loss is eta² mean((e(pos) - e(neg))²) at the rollout's x_t.
    """
    pair = request.getfixturevalue(kind)
    networks = [pair.base, *([] if isinstance(pair.distilled, str) else [pair.distilled])]
    before = snapshot(*networks)
    expected = dtviz.generate(pair, "a dog", method=on, seeds=[7], base_guidance=3.0).final
    torch.manual_seed(0)
    slider = train_slider(pair, name="x", on=on, eta=3.0, **TEXTS, **QUICK)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))  # the caller's numbers
    base = on == "base"
    settings = {"steps": pair.base_steps if base else pair.steps, "guidance": 3.0 if base else pair.guidance}
    conditions = Conditions(pair, ["a dog", "a cat", "happy", "sad"])
    draws, calls = iteration_generator(0, 0), train.sampler_calls(pair, on, **settings)
    prompts = [TEXTS["target"][row] for row in torch.randint(2, (2,), generator=draws).tolist()]
    call = calls[int(torch.randint(len(calls), (), generator=draws))]
    with training(pair, on, ATTENTION, rank=2) as (denoiser, _), torch.no_grad():
        x_t = train.rollout(denoiser, calls, call.index, conditions, prompts, draws)
        x_t = call.scheduler.scale_model_input(x_t, call.timestep)
        ends = [predict(denoiser, x_t, call.timestep, conditions.rows([end] * 2)) for end in ("happy", "sad")]
        calls, generator = train.sampler_calls(pair, on, **settings), torch.Generator().manual_seed(7)
        final = train.rollout(denoiser, calls, len(calls), conditions, ["a dog"], generator)
    assert slider.facts["loss"] == pytest.approx(9 * F.mse_loss(*ends).item(), rel=1e-4)
    torch.testing.assert_close(final, expected, atol=1e-4, rtol=1e-4)  # only the order of sums in batches differs
    assert final.std() > 0.1
    dreambooth = {"prompts": "q dog", "class_prompt": "dog", "on": on, "prior_images": 2, "modules": ATTENTION}
    train_customisation(pair, torch.rand(2, 3, 16, 16), name="x", **dreambooth, **QUICK)
    assert_same(before, snapshot(*networks))
    with pytest.raises(KeyError), training(pair, on, CROSS_ATTENTION, rank=2):
        raise KeyError("in the middle of it")
    assert_same(before, snapshot(*networks))


def test_both_directions_of_a_slider_are_learnt(pair):
    """After training, scale 1 moves the prediction along e(pos) - e(neg), and scale -1 against it."""
    options = {"iterations": 30, "batch_size": 4, "lr": 0.02, "alpha": 4.0, "steps": 1, "progress": False}
    slider = train_slider(pair, name="x", eta=1.0, **TEXTS, **options)
    conditions = Conditions(pair, ["a dog", "happy", "sad"])
    x_t = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(9))

    def output(text: str, scale: float) -> torch.Tensor:
        with controls.attach(pair.base, slider, scale=scale), torch.no_grad():
            return predict(pair.base, x_t, torch.tensor(999), conditions.rows([text] * 16)).flatten()

    direction = output("happy", 0) - output("sad", 0)
    for scale in (1, -1):
        moved = output("a dog", scale) - output("a dog", 0)
        assert F.cosine_similarity(scale * direction, moved, dim=0) > 0.5


def test_the_facts_tell_how_it_was_trained(pair, tmp_path):
    slider = train_slider(pair, name="smile", licence="MIT", on="distilled", **TEXTS, **QUICK)
    facts = controls.load(slider.save(tmp_path / "smile.safetensors")).facts
    assert facts["prompts"] == ["a dog", "a cat"]
    assert (facts["towards"], facts["licence"], facts["eta"], facts["steps"]) == ("happy", "MIT", 4.0, 4)
    assert facts["trained_on"] == {"pair": "custom", "role": "distilled", "fingerprint": ""}
    assert set(inspect.signature(train_slider).parameters) - {"pair", "name", "on", "progress"} <= set(facts)
    again = train_slider(pair, name="smile", on="distilled", **TEXTS, **QUICK, seed=4)
    assert again.fingerprint != slider.fingerprint
    assert train_slider(pair, name="y", on="distilled", **TEXTS, **QUICK).fingerprint == slider.fingerprint


@pytest.mark.parametrize(("kind", "on"), [("epsilon", "base"), ("v_prediction", "base"), ("epsilon", "distilled")])
def test_the_first_loss_of_a_customisation_is_the_models_own(pair, kind, on):
    """At all timesteps on the base, at its own four on the distilled model."""
    scheduler = DDIMScheduler.from_config(pair.base_scheduler.config, prediction_type=kind)
    pair = replace(pair, base_scheduler=scheduler, distilled_scheduler=LCMScheduler.from_config(scheduler.config))
    images, texts = torch.rand(2, 3, 16, 16), ["a dog", "a cat"]
    control = train_customisation(pair, images, name="x", prompts=texts, on=on, **QUICK)
    draws, x0 = iteration_generator(0, 0), encode(images, pair)
    rows = torch.randint(2, (2,), generator=draws)
    torch.rand(2, generator=draws)  # which samples lose their prompt: none
    times = torch.arange(1000) if on == "base" else torch.tensor([999, 749, 499, 249])
    t = times[torch.randint(len(times), (2,), generator=draws)]
    noise = torch.randn(2, 4, 8, 8, generator=draws)
    a = diffusers.DDPMScheduler.from_config(scheduler.config).alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = a.sqrt() * x0[rows] + (1 - a).sqrt() * noise
    goal = noise if kind == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * x0[rows]
    with torch.no_grad():
        network = pair.base if on == "base" else pair.distilled
        output = predict(network, x_t, t, Conditions(pair, texts).rows([texts[row] for row in rows]))
    assert control.facts["loss"] == pytest.approx(F.mse_loss(output, goal).item(), rel=1e-4)
    assert set(control.modules) == set(train.trainable_layers(pair, on, CROSS_ATTENTION))
    assert all(name.endswith(("attn2.to_k", "attn2.to_v")) for name in control.modules)


def test_the_prior_adds_to_the_loss(pair):
    options = {"name": "x", "prompts": "q dog", "class_prompt": "dog", "prior_images": 2} | QUICK
    images = torch.rand(2, 3, 16, 16)
    trained = [train_customisation(pair, images, prior_weight=weight, **options) for weight in (0.0, 1.0, 3.0)]
    none, some, more = (control.facts["loss"] for control in trained)
    assert more - none == pytest.approx(3 * (some - none), rel=1e-4)
    assert some > none


def test_what_is_trained_by_adamw_is_what_the_control_does(pair):
    """In training at scale s, and with the control attached at s, the network answers the same; alpha and all."""
    conditions, x_t = Conditions(pair, ["a dog"]), torch.randn(2, 4, 8, 8)
    facts = {"alpha": 2.0, "rank": 4, "iterations": 3, "lr": 0.1, "seed": 5}
    with training(pair, "base", ("to_q", "conv1"), rank=4, alpha=2.0) as (denoiser, hooks):
        by_hand = {key: tensor.detach().clone().requires_grad_() for key, tensor in hooks.tensors.items()}
        optimiser = torch.optim.AdamW(by_hand.values(), lr=0.1, weight_decay=0.01)

        def loss_of(tensors: dict, draws: torch.Generator) -> torch.Tensor:
            parts = [tensor - torch.randn(tensor.shape, generator=draws) for tensor in tensors.values()]
            return sum(part.square().sum() for part in parts)

        options = {"name": "x", "kind": "y", "facts": facts, "progress": False}
        control = train.optimise(hooks, lambda _, draws: loss_of(hooks.tensors, draws), **options)
        for iteration in range(3):
            optimiser.zero_grad()
            loss_of(by_hand, iteration_generator(5, iteration)).backward()
            optimiser.step()
        assert all(torch.equal(tensor, by_hand[key]) for key, tensor in hooks.tensors.items())
        hooks.scale = -1.5 * 2.0 / 4
        with torch.no_grad():
            expected = predict(denoiser, x_t, 500, conditions.rows(["a dog"] * 2))
        with pytest.raises(FloatingPointError, match="iteration 0.*smaller lr than 0.1"):
            train.optimise(hooks, lambda *_: hooks.tensors[next(iter(by_hand))].sum() * torch.inf, **options)
    with controls.attach(pair.base, control, scale=-1.5), torch.no_grad():
        output = predict(pair.base, x_t, 500, conditions.rows(["a dog"] * 2))
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_arguments_are_named(pair):
    pair.base.register_forward_pre_hook(lambda *_: pytest.fail("the network was run before the arguments were checked"))
    for changed, message in (
        ({"on": "student"}, "on='student' is not one of base, distilled"),
        ({"target": " "}, "target"),
        ({"positive": ["a", "b", "c"]}, "positive.* one or 2"),
        ({"negative": "happy"}, "positive='happy' and negative are the same"),
        ({"rank": "4"}, "rank='4'"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"modules": ["to_x"]}, "ends in 'to_x'; some end in .*to_k"),
    ):
        with pytest.raises(ValueError, match=message):
            train_slider(pair, name="x", **(TEXTS | QUICK | changed))
    for images, changed, message in (
        (torch.rand(3, 16, 16), {}, "images"),
        (torch.rand(1, 3, 16, 16) * 255, {}, r"within \[0, 1\]"),
        (torch.rand(2, 3, 16, 16), {"prompts": ["a", "b", "c"]}, "prompts.* one or 2"),
        (torch.rand(2, 3, 16, 16), {"drop": 1.0}, "drop=1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            train_customisation(pair, images, name="x", **({"prompts": "a dog"} | QUICK | changed))


def test_other_errors_are_named(pair):
    with pytest.raises(ValueError, match="resize them"):
        train_customisation(pair, torch.rand(1, 3, 32, 32), name="x", prompts="a dog", **QUICK)
    pipe = PIPELINES["sd3"]().pipe
    with pytest.raises(NotImplementedError, match="SD3Transformer2DModel.*only UNets without guidance input"):
        train_slider(dtviz.Pair(pipe, pipe.transformer), name="x", **TEXTS, **QUICK)
    guided = diffusers.UNet2DConditionModel.from_config(pair.base.config, time_cond_proj_dim=8)
    with pytest.raises(NotImplementedError, match="on='distilled' .*guidance input: True.: only UNets"):
        train_slider(replace(pair, distilled=guided), name="x", on="distilled", **TEXTS, **QUICK)
    pair.base.half()
    with pytest.raises(ValueError, match="float16"):
        train_slider(pair, name="x", **TEXTS, **QUICK)
