"""Attached controls against weights changed by hand: on networks, in runs, by segment and noise level, and restored."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import dtviz
from dtviz import controls
from dtviz.controls.control import DOWN, UP, Control
from dtviz.controls.train import CROSS_ATTENTION

from .conftest import answer, assert_same, change, random_factors, snapshot
from .tiny import PIPELINES, add_lora, tiny_unet

RUN = {"seeds": range(2), "prompt": "a dog"}
TOLERANCE = 1e-5  # float32 outputs of size one, after some thirty layers
NORM = Control("norm", "slider", {"conv_norm_out" + DOWN: torch.ones(2, 16), "conv_norm_out" + UP: torch.ones(16, 2)})
NEAR = 1e-4  # latents of size one after twelve evaluations, each equal to about 1e-6


def changed(unet, control: Control, scale: float):
    """A copy of the network with the change in its weights."""
    other, weights = type(unet).from_config(unet.config).eval(), unet.state_dict()
    changes = {f"{m}.weight": weights[f"{m}.weight"] + scale * change(control, m) for m in control.modules}
    other.load_state_dict(weights | changes)
    return other


@pytest.fixture
def smile() -> Control:
    """A control of the tiny network."""
    return Control("smile", "slider", random_factors(tiny_unet(1)))


# On networks


def test_every_exit_leaves_the_network_as_it_was(pipe, smile):
    unet, before, random, plain = pipe.unet, snapshot(pipe.unet), torch.get_rng_state(), answer(pipe.unet)
    modules = [(name, id(module)) for name, module in unet.named_modules()]
    with controls.attach(unet, smile, scale=2.0):
        assert (answer(unet) - plain).abs().max() > 0.01
    assert_same(before, snapshot(unet))
    with pytest.raises(KeyError, match="mine"), controls.attach(unet, smile):
        raise KeyError("mine")
    assert_same(before, snapshot(unet))
    assert modules == [(name, id(module)) for name, module in unet.named_modules()]
    assert not getattr(unet, "peft_config", {})
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(answer(unet), plain)


def test_one_and_two_attached_controls_equal_weights_added_by_hand(pipe, smile):
    second = Control("y", "style", random_factors(pipe.unet, seed=5))
    with controls.attach(pipe, smile, scale=2.0):
        assert (answer(pipe.unet) - answer(changed(pipe.unet, smile, 2.0))).abs().max() < TOLERANCE
    by_hand = answer(changed(changed(pipe.unet, second, 0.5), smile, -2.0))
    with controls.attach(pipe, smile.at(-2.0), second, scale=0.5) as attached:
        assert (answer(pipe.unet) - by_hand).abs().max() < TOLERANCE
        assert [facts["scale"] for facts in attached.facts()] == [-2.0, 0.5]


@pytest.mark.parametrize("own", ["off", "on", "fused"])
def test_adapters_of_the_caller_stay_as_they_are(pipe, smile, own):
    unet = pipe.unet
    add_lora(unet, "own", modules=("to_q", "to_k"))
    unet.requires_grad_(False)
    {"off": unet.disable_adapters, "on": unet.enable_adapters, "fused": unet.fuse_lora}[own]()
    plain, before = answer(unet), snapshot(unet)
    with controls.attach(unet, smile):
        strong = answer(unet)
    assert_same(before, snapshot(unet))
    assert list(unet.peft_config) == ["own"]
    assert torch.equal(answer(unet), plain)
    with pytest.raises(ValueError, match="takes no such change"), controls.attach(unet, smile, NORM):
        pass
    assert_same(before, snapshot(unet))
    for module in smile.modules:  # the same change in the layers' own weights
        layer = unet.get_submodule(module)
        getattr(layer, "base_layer", layer).weight.data += change(smile, module)
    assert (strong - answer(unet)).abs().max() < TOLERANCE


@pytest.mark.parametrize(("family", "ending"), [("sdxl", "attn1.to_k"), ("flux", "attn.to_k")])
def test_fused_attention_is_refused_until_it_is_unfused(family, ending):
    tiny = PIPELINES[family]()
    denoiser = getattr(tiny.pipe, tiny.denoiser)
    name, layer = next((name, module) for name, module in denoiser.named_modules() if name.endswith(ending))
    factors = {name + DOWN: torch.ones(2, layer.in_features), name + UP: torch.ones(layer.out_features, 2)}
    control = Control("x", "lora", factors)
    denoiser.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"does not evaluate .*to_k: call unfuse_qkv_projections\(\) first"):
        controls.attach(denoiser, control).__enter__()
    denoiser.unfuse_qkv_projections()
    with controls.attach(denoiser, control):
        pass


@pytest.mark.parametrize("family", ["sdxl-refiner", "flux"])
def test_other_families_equal_diffusers_own_loading(family, tmp_path):
    tiny = PIPELINES[family]()
    denoiser, part = getattr(tiny.pipe, tiny.denoiser), tiny.denoiser
    path = Control("x", "lora", random_factors(denoiser), part=part).save(tmp_path / "x.safetensors")
    assert all(key.startswith(f"{part}.") for key in load_file(path))
    plain = tiny.run("latent")
    with controls.attach(tiny.pipe, controls.load(path)):
        strong = tiny.run("latent")
    assert (strong - plain).abs().max() > 100 * TOLERANCE
    assert torch.equal(tiny.run("latent"), plain)
    denoiser.load_lora_adapter(path, prefix=part, adapter_name="reference")
    assert (tiny.run("latent") - strong).abs().max() < TOLERANCE


def test_what_does_not_fit_is_refused(pipe, smile):
    before, name = snapshot(pipe.unet), smile.modules[0]
    foreign = Control("xl", "slider", {f"deeper.{key}": tensor for key, tensor in smile.tensors.items()})
    wide = Control("wide", "slider", {name + DOWN: torch.ones(2, 99), name + UP: torch.ones(7, 2)})
    zero = Control("zero", "slider", {key: t * (not key.endswith(UP)) for key, t in smile.tensors.items()})
    for other, message in (
        (foreign, r"control 'xl' is not for this UNet2DConditionModel: \d+ of its \d+ modules are not there"),
        (wide, r"it changes .* by \(7, 99\), whose weight is"),
        (NORM, "conv_norm_out is a GroupNorm there, which takes no such change"),
        (zero, "control 'zero' changes nothing: its weights are 0, is it untrained"),
        (smile.at(1.0, segment="base"), "a segment or window needs a dtviz.Pair"),
    ):
        with pytest.raises(ValueError, match=message):
            controls.attach(pipe, smile, other).__enter__()
        assert_same(before, snapshot(pipe.unet))
    with pytest.raises(ValueError, match="without a denoiser"):
        controls.attach("emoji-dmd", smile).__enter__()
    pipe.unet.mid_block._compiled_call_impl = print  # by `compile`, which skips hooks that are added later
    with pytest.raises(ValueError, match="the network is compiled, which skips hooks"):
        controls.attach(pipe, smile).__enter__()


# In runs


def run(pair: dtviz.Pair, *applied, **settings) -> tuple[torch.Tensor, list[dict]]:
    """Final latents with controls, and the controls' facts."""
    with controls.attach(pair, *applied) as attached:
        trace = dtviz.generate(pair, **(RUN | settings), on_call=attached.on_call)
    return trace.final, attached.facts()


def by_hand(pair: dtviz.Pair, control: Control, scale: float, segment: str, **settings) -> torch.Tensor:
    """Final latents of a pair whose networks have the change in their weights."""
    plain = pair.base
    distilled = pair.distilled if segment == "base" else changed(pair.distilled, control, scale)
    pair.pipeline.unet = plain if segment == "distilled" else changed(plain, control, scale)
    try:
        return dtviz.generate(replace(pair, distilled=distilled), **RUN, **settings).final
    finally:
        pair.pipeline.unet = plain


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < NEAR)


@pytest.mark.parametrize(
    ("method", "segment"), [("base", "both"), ("hybrid", "both"), ("hybrid", "base"), ("skip", "distilled")]
)
def test_a_run_equals_one_of_changed_weights(pair, smile, method, segment):
    plain = dtviz.generate(pair, **RUN, method=method)
    final, [facts] = run(pair, smile.at(0.7, segment=segment), method=method)
    assert not near(plain.final, final)
    assert near(final, by_hand(pair, smile, 0.7, segment, method=method))
    assert facts["calls"] == {role: n if segment in ("both", role) else 0 for role, n in plain.steps_run.items()}
    assert torch.equal(dtviz.generate(pair, **RUN, method=method).final, plain.final)


def test_scale_zero_and_a_window_without_steps_are_the_plain_model_to_the_bit(pair, smile):
    plain = dtviz.generate(pair, **RUN, method="hybrid").final
    for applied in ([], [smile.at(0.0)], [smile.at(2.0, window=(1e-6, 0.0))]):
        final, facts = run(pair, *applied, method="hybrid")
        assert torch.equal(final, plain)
        assert all(set(one["calls"].values()) == {0} for one in facts)


@pytest.mark.parametrize("method", ["base", "distilled", "hybrid"])
def test_a_window_is_of_noise_levels(pair, smile, method):
    """Against networks whose weights are changed by hand before the calls at or below timestep 500 (sigma 1.64)."""
    alpha = pair.base_scheduler.alphas_cumprod[500]
    settings = {"method": method, "handover": "matched-sigma"}
    final, [facts] = run(pair, smile.at(0.7, window=(float(((1 - alpha) / alpha) ** 0.5), 0.0)), **settings)
    handles = []
    for network in (pair.base, pair.distilled):
        plain, strong = copy.deepcopy(network.state_dict()), changed(network, smile, 0.7).state_dict()

        def choose(module, args, kwargs, plain=plain, strong=strong):
            module.load_state_dict(strong if float(args[1]) <= 500 else plain)

        handles.append(network.register_forward_pre_hook(choose, with_kwargs=True))
    expected = dtviz.generate(pair, **RUN, **settings)
    for handle in handles:
        handle.remove()
    assert near(final, expected.final)
    assert 0 < sum(facts["calls"].values()) < sum(expected.steps_run.values())


@pytest.mark.parametrize("segment", ["both", "base", "distilled"])
def test_one_network_whose_distilled_model_is_an_adapter(one_network, smile, segment):
    """As with two networks."""
    pair, distilled, method = one_network, tiny_unet(1), "hybrid"  # the base has the same weights
    add_lora(distilled, "distilled", modules=CROSS_ATTENTION)
    distilled.fuse_lora()
    distilled.unload_lora()
    plain = dtviz.generate(pair, **RUN, method=method).final
    final, _ = run(pair, smile.at(0.7, segment=segment), method=method)
    assert torch.equal(dtviz.generate(pair, **RUN, method=method).final, plain)
    pair.base.unload_lora()
    assert near(final, by_hand(replace(pair, distilled=distilled), smile, 0.7, segment, method=method))
    assert not near(final, plain)


def test_attach_around_ones_own_call(pair, smile):
    """`attach` and `dtviz.hybrid` around a pipeline's own call. The control is on in both segments."""
    pipe = pair.pipeline
    pipe.scheduler = pair.distilled_scheduler
    call = {"prompt": "a dog", "num_inference_steps": 4, "guidance_scale": 0.0, "output_type": "latent"}
    with controls.attach(pair, smile, scale=0.7), dtviz.hybrid(pipe, pair.distilled, k=1):
        images = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    pipe.unet, distilled = changed(pair.base, smile, 0.7), changed(pair.distilled, smile, 0.7)
    with dtviz.hybrid(pipe, distilled, k=1):
        expected = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    assert near(images, expected)
