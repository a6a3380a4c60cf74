"""dtviz.control: files in every form against diffusers' own loading, and what is put on, proved and taken off again."""

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

import dtviz
from dtviz import control
from dtviz.controls import DOWN, UP, scaled, split
from dtviz.example import answer

from .conftest import random_factors, tiny_unet
from .tiny import PIPELINES

SCALES = (-1.0, 0.5, 2.0)
TOLERANCE = 1e-5  # float32 outputs of size one, after some thirty layers


@pytest.fixture(scope="module")
def sdxl():
    """Stable Diffusion XL's classes at tiny random size."""
    return PIPELINES["sdxl"]().pipe


@pytest.fixture(scope="module")
def factors(sdxl) -> dict[str, torch.Tensor]:
    """Random factors for all attention layers, a feed-forward layer and a convolution, of two ranks."""
    return random_factors(sdxl.unet)


def kohya(tensors: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """The same under kohya's names."""
    renamed = {}
    for key, tensor in tensors.items():
        module, form = split(key)
        flat = "lora_unet_" + module.replace(".", "_")
        renamed[f"{flat}.{'lora_down' if form == DOWN else 'lora_up'}.weight"] = tensor
        renamed[f"{flat}.alpha"] = torch.tensor(alpha)
    return renamed


def theirs(pipe, path, scale: float, **options) -> torch.Tensor:
    """The network's answer with a file that diffusers has loaded."""
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="theirs", **options)
    try:
        pipe.set_adapters("theirs", scale)
        return answer(pipe.unet)
    finally:
        pipe.unload_lora_weights()


def ours(pipe, one: control.Control, scale: float) -> torch.Tensor:
    with control.attach(pipe, one, scale):
        return answer(pipe.unet)


def assert_same_effect(pipe, path, one: control.Control) -> None:
    plain = answer(pipe.unet)
    for scale in SCALES:
        expected, found = theirs(pipe, path, scale), ours(pipe, one, scale)
        assert (expected - plain).abs().max() > 100 * TOLERANCE  # there is something to be equal to
        assert (found - expected).abs().max() < TOLERANCE
    assert torch.equal(answer(pipe.unet), plain)


# Files


def test_own_file_comes_back_and_is_a_diffusers_lora(sdxl, factors, tmp_path):
    facts = {"prompts": ["face"], "trained_on": {"pair": "emoji-dmd", "role": "base"}, "licence": "MIT"}
    made = control.Control("smile", "slider", factors, facts, ("text_encoder, 2 tensors",))
    path = made.save(tmp_path / "deep" / "smile.safetensors")
    found = control.load(path)
    assert (found.name, found.kind, found.facts, found.left_out) == ("smile", "slider", facts, made.left_out)
    assert found.fingerprint == made.fingerprint
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in factors.items())
    assert control.load(path, name="grin").name == "grin"
    assert_same_effect(sdxl, path, found)
    assert path.read_bytes() == made.save(tmp_path / "again.safetensors").read_bytes()


def test_kohya_file_equals_diffusers(sdxl, factors, tmp_path):
    path = tmp_path / "slider.safetensors"
    save_file(kohya(factors, alpha=1.0), path)
    found = control.load(path)
    assert (found.name, found.kind, set(found.tensors)) == ("slider", "lora", set(factors))
    assert_same_effect(sdxl, path, found)


def test_kohya_pickle_is_read_as_weights_only_with_a_warning(sdxl, factors, tmp_path):
    torch.save(kohya(factors, alpha=1.0), tmp_path / "age.pt")
    save_file(kohya(factors, alpha=1.0), tmp_path / "age.safetensors")
    with pytest.warns(UserWarning, match="age.pt is a pickle, read as weights only"):
        found = control.load(tmp_path / "age.pt")
    assert found.fingerprint == control.load(tmp_path / "age.safetensors").fingerprint


def test_kohya_names_of_the_original_blocks(tmp_path):
    names = {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "lora_unet_middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
        "lora_unet_output_blocks_3_1_transformer_blocks_0_attn2_to_out_0": "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
    }
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 3) for name in names}
    tensors |= {f"{name}.lora_up.weight": torch.ones(3, 2) for name in names}
    save_file(tensors, tmp_path / "sgm.safetensors")
    assert control.load(tmp_path / "sgm.safetensors").modules == tuple(sorted(names.values()))


def test_diffusers_file_with_settings_in_its_header_equals_diffusers(sdxl, tmp_path):
    """As the training scripts write it: `save_lora_weights` with metadata, alpha other than rank, one module's own."""
    unet = tiny_unet_like(sdxl)
    settings = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_v", "to_out.0"],
        alpha_pattern={"attn2.to_v": 2},
        rank_pattern={"attn2.to_v": 3},
    )
    unet.add_adapter(settings, adapter_name="trained")
    stir(unet)
    unet.save_lora_adapter(tmp_path, adapter_name="trained", weight_name="plain.safetensors")
    from diffusers.loaders.lora_base import LoraBaseMixin

    tensors = load_file(tmp_path / "plain.safetensors")
    metadata = unet.peft_config["trained"].to_dict()
    type(sdxl).save_lora_weights(tmp_path, unet_lora_layers=tensors, unet_lora_adapter_metadata=metadata)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert issubclass(type(sdxl), LoraBaseMixin)
    found = control.load(tmp_path)
    assert found.name == tmp_path.name
    assert_same_effect(sdxl, path, found)
    # and what is taken from the network that it was trained on is the same again
    taken = control.from_adapter(unet, "trained", name="taken")
    assert torch.equal(ours(sdxl, taken, 1.5), ours(sdxl, found, 1.5))


@pytest.mark.parametrize("form", ["lora", "processor"])
def test_older_diffusers_names_equal_diffusers(sdxl, factors, form, tmp_path):
    """`to_q.lora.down.weight`, and before it `processor.to_q_lora.down.weight`; both without alpha."""
    renamed = {}
    for key, tensor in factors.items():
        if ".attn" not in key:
            continue
        module, end = split(key)
        half = "down" if end == DOWN else "up"
        attention, projection = module.split(".to_")
        old = f"unet.{attention}.processor.to_{projection.removesuffix('.0')}_lora.{half}.weight"
        renamed[old if form == "processor" else f"unet.{module}.lora.{half}.weight"] = tensor
    save_file(renamed, tmp_path / "old.safetensors")
    found = control.load(tmp_path / "old.safetensors")
    assert set(found.tensors) == {key for key in factors if ".attn" in key}
    assert_same_effect(sdxl, tmp_path / "old.safetensors", found)


def test_peft_folder_equals_peft(sdxl, tmp_path):
    """adapter_config.json beside adapter_model.safetensors, rsLoRA's scale alpha / sqrt(rank)."""
    from peft import get_peft_model

    unet = tiny_unet_like(sdxl)
    plain = answer(unet)
    settings = LoraConfig(r=4, lora_alpha=3, target_modules=["to_k", "to_v"], use_rslora=True)
    model = get_peft_model(unet, settings)
    stir(unet)
    expected = answer(unet)
    model.save_pretrained(tmp_path / "toy")
    found = control.load(tmp_path / "toy")
    assert found.name == "toy"
    assert (expected - plain).abs().max() > 100 * TOLERANCE
    assert (ours(sdxl, found, 1.0) - expected).abs().max() < TOLERANCE


def test_an_adapter_of_rank_stabilised_scale_is_taken_as_it_is(sdxl):
    unet = tiny_unet_like(sdxl)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=3, target_modules=["to_k"], use_rslora=True), adapter_name="mine")
    stir(unet)
    taken = control.from_adapter(unet, "mine", name="mine")
    assert (ours(sdxl, taken, 1.0) - answer(unet)).abs().max() < TOLERANCE


def tiny_unet_like(pipe):
    """A copy of the pipeline's network."""
    unet = type(pipe.unet).from_config(pipe.unet.config)
    unet.load_state_dict(pipe.unet.state_dict())
    return unet.eval()


def stir(unet) -> None:
    """As if it had been trained: peft starts with factors whose product is 0."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4


def test_text_encoder_parts_are_named_and_left_out(sdxl, factors, tmp_path):
    tensors = {f"unet.{key}": tensor for key, tensor in factors.items()}
    tensors |= {f"text_encoder.x.q_proj{form}": torch.ones(4, 4) for form in (DOWN, UP)}
    save_file(tensors, tmp_path / "both.safetensors")
    found = control.load(tmp_path / "both.safetensors")
    assert found.left_out == ("text_encoder, 2 tensors",)
    with control.attach(sdxl, found) as proof:
        assert str(proof).endswith("not at all at 0; not applied: text_encoder, 2 tensors")
    save_file({key: tensor for key, tensor in tensors.items() if "text" in key}, tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="none of it is for the denoiser, but text_encoder, 2 tensors"):
        control.load(tmp_path / "text.safetensors")


def tuned_weights(unet) -> dict[str, torch.Tensor]:
    """Cross-attention keys and values of a network that was tuned."""
    generator = torch.Generator().manual_seed(2)
    names = [name for name, _ in unet.named_parameters() if "attn2.to_k" in name or "attn2.to_v" in name]
    return {n: unet.state_dict()[n] + torch.randn(unet.state_dict()[n].shape, generator=generator) / 5 for n in names}


def test_custom_diffusion_equals_hand_added_weights_and_diffusers_processors(sdxl, tmp_path):
    tuned = tuned_weights(sdxl.unet)
    layout = {
        key.replace(".to_", ".processor.to_").replace(".weight", "_custom_diffusion.weight"): t
        for key, t in tuned.items()
    }
    torch.save(layout, tmp_path / "pytorch_custom_diffusion_weights.bin")
    with pytest.warns(UserWarning, match="pickle"):
        found = control.load(tmp_path, base=sdxl, name="toy")
    assert (found.kind, set(found.tensors)) == ("custom-diffusion", set(tuned))

    for scale in SCALES:
        by_hand = tiny_unet_like(sdxl)
        state = by_hand.state_dict()
        by_hand.load_state_dict(state | {key: state[key] + scale * (t - state[key]) for key, t in tuned.items()})
        assert (ours(sdxl, found, scale) - answer(by_hand)).abs().max() < TOLERANCE

    other = PIPELINES["sdxl"]().pipe
    other.unet.load_state_dict(sdxl.unet.state_dict())
    empty = {name: {} for name in other.unet.attn_processors if ".attn1." in name}
    other.unet.load_attn_procs(layout | empty, _pipeline=other)
    assert (ours(sdxl, found, 1.0) - answer(other.unet)).abs().max() < TOLERANCE


def test_custom_diffusion_of_the_original_code(tmp_path):
    """Its delta.ckpt numbers the blocks as Stable Diffusion 1 does; the new word's embedding is named."""
    unet = tiny_unet(0)  # two levels of one layer: only the middle block has the same number with two
    tuned = torch.randn(unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight.shape)
    held = {
        "state_dict": {
            "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": tuned,
            "embed": {"<new1>": torch.ones(16)},
        }
    }
    torch.save(held, tmp_path / "delta.ckpt")
    with pytest.warns(UserWarning, match="pickle"):
        found = control.load(tmp_path / "delta.ckpt", base=unet)
    [module] = found.modules
    assert module == "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    assert torch.equal(found.change(module), tuned - unet.get_submodule(module).weight)
    assert found.left_out == ("embed, 1 tensors",)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"unet.a.b.lora_A.weight": torch.ones(2, 3)}, "module 'a.b' needs lora_A.weight .* and has .'a.b.lora_A.weight'"),
        ({"hada_w1": torch.ones(2)}, "1 of its tensors are no LoRA factors, such as hada_w1. It holds 1 tensors, such as hada_w1"),
        (
            {"unet.a.lora_A.weight": torch.ones(2, 3), "unet.a.lora_B.weight": torch.ones(4, 2), "unet.a.lora_magnitude_vector": torch.ones(4)},
            "no LoRA factors, such as a.lora_magnitude_vector",
        ),
        ({"x.processor.to_k_custom_diffusion.weight": torch.ones(2, 2)}, "give base=, the pair, pipeline or denoiser"),
        ({"lora_unet_a.lora_down.weight": torch.ones(2, 2), "strange": torch.ones(1)}, "among kohya's have other names, such as strange"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_control_says_what_it_holds(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message):
        control.load(tmp_path / "x.safetensors")


def test_no_code_of_a_file_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("owned",))

    torch.save({"lora_unet_a.lora_down.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read as weights only; nothing in it was run"):
        control.load(tmp_path / "evil.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="cannot be read, is it damaged"):
        control.load(tmp_path / "cut.safetensors")


def test_what_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no shipped control, file, folder, or repository"):
        control.load(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="has no single file of weights: .* holds nothing"):
        control.load(tmp_path)
    for name in ("a", "b"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError, match="say which by weight_name; it holds a.safetensors, b.safetensors"):
        control.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no 'c.safetensors'"):
        control.load(tmp_path, weight_name="c.safetensors")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(dtviz.Unavailable, match="control 'someone/lego' is not in this machine's hub cache"):
        control.load("someone/lego")


def test_a_repository_in_the_hubs_cache_is_read_offline(factors, tmp_path, monkeypatch):
    """In the cache's own layout, peft's settings beside the weights."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--lego"
    held = repo / "snapshots" / "abc"
    held.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    save_file(
        {f"base_model.model.{key}": tensor for key, tensor in factors.items()}, held / "adapter_model.safetensors"
    )
    (held / "adapter_config.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 1, "alpha_pattern": {"mid_block.*": 2}})
    )
    found = control.load("someone/lego")
    assert found.name == "lego"
    for module in found.modules:
        rank = len(factors[module + DOWN])
        expected = factors[module + UP] * (2 if module.startswith("mid_block") else 1) / rank
        assert torch.equal(found.tensors[module + UP], expected)
    with pytest.raises(dtviz.Unavailable, match="out of reach"):
        control.load("someone/lego", weight_name="other.safetensors")


# Controls


def test_change_is_the_product_with_alpha_in_it(factors):
    module = next(key for key in factors if key.endswith("to_q" + DOWN)).removesuffix(DOWN)
    one = control.Control("x", "lora", scaled(factors, {module: 1.0}))
    rank = factors[module + UP].shape[1]
    expected = factors[module + UP] @ factors[module + DOWN] / rank
    assert torch.allclose(one.change(module), expected, atol=1e-6)
    conv = next(m for m in one.modules if m.endswith("conv1"))
    loop = sum(factors[conv + UP][:, r, 0, 0][:, None, None, None] * factors[conv + DOWN][r] for r in range(4))
    assert torch.allclose(one.change(conv), loop, atol=1e-6)
    with pytest.raises(KeyError):
        one.change("nowhere")


def test_alpha_in_half_precision_loses_nothing():
    """alpha / rank = 1 / 4 is exact in float16 and stays there; 1 / 3 is not, and takes float32."""
    half = {f"a{DOWN}": torch.ones(4, 2).half(), f"a{UP}": torch.full((3, 4), 0.3).half()}
    assert scaled(half, {"a": 1.0})[f"a{UP}"].dtype == torch.float16
    odd = scaled(half, {"a": 4 / 3})[f"a{UP}"]
    assert odd.dtype == torch.float32
    assert torch.equal(odd, half[f"a{UP}"].float() * (1 / 3))


def test_fingerprint_is_of_the_tensors_alone(factors):
    one = control.Control("x", "slider", factors)
    assert one.fingerprint == control.Control("y", "style", factors, {"licence": "MIT"}).fingerprint
    key = next(iter(factors))
    other = control.Control("x", "slider", factors | {key: factors[key] + 1e-7})
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": float("nan")}, "scale=nan must be a finite number"),
        ({"segment": "student"}, "segment='student' is not one of both, base, distilled"),
        ({"window": (1.0, 4.0)}, "must be .high, low. noise levels, finite and falling"),
        ({"window": (float("inf"), 0.0)}, "finite and falling"),
        ({"window": (1.0,)}, "must be .high, low."),
    ],
)
def test_applied_refuses(settings, message, factors):
    with pytest.raises(ValueError, match=message):
        control.Control("x", "slider", factors).at(**settings)


def test_applied_says_when_it_is_on(factors):
    one = control.Control("smile", "slider", factors)
    applied = one.at(2.0, segment="base", window=(4.0, 1.0))
    assert str(applied) == "smile x 2 (base, sigma 4 to 1)"
    assert [applied.on("base", sigma) for sigma in (4.01, 4.0, 1.0, 0.9)] == [False, True, True, False]
    assert not applied.on("distilled", 2.0)
    assert not one.at(0.0).on("base", 2.0)
    assert json.loads(json.dumps(applied.facts()))["window"] == [4.0, 1.0]
    with pytest.raises(ValueError, match="control is a str"):
        control.Applied("smile")


# On a network


def state(unet) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in unet.state_dict().items()}


def assert_untouched(unet, before) -> None:
    after = unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.fixture(params=["lora", "delta", "mixed"])
def one(request, pipe) -> control.Control:
    """A control of the tiny network, as factors, as whole changes, or as some of each."""
    tensors = random_factors(pipe.unet)
    if request.param == "lora":
        return control.Control("x", "slider", tensors)
    lora = control.Control("x", "slider", tensors)
    linear = [m for m in lora.modules if m.endswith(("attn2.to_k", "attn2.to_v"))]
    deltas = {f"{module}.weight": lora.change(module) for module in linear}
    kept = {key: tensor for key, tensor in tensors.items() if "attn1" in key} if request.param == "mixed" else {}
    return control.Control("x", "slider", kept | deltas)


def test_attached_equals_weights_added_by_hand(pipe, one):
    for scale in SCALES:
        by_hand = tiny_unet(1)
        weights = by_hand.state_dict()
        by_hand.load_state_dict(
            weights | {f"{m}.weight": weights[f"{m}.weight"] + scale * one.change(m) for m in one.modules}
        )
        assert (ours(pipe, one, scale) - answer(by_hand)).abs().max() < TOLERANCE


def test_every_way_out_leaves_the_network_as_it_was(pipe, one):
    unet, before, random = pipe.unet, state(pipe.unet), torch.get_rng_state()
    modules = [(name, id(module)) for name, module in unet.named_modules()]
    with control.attach(unet, one, 2.0) as proof:
        assert proof.networks == ("UNet2DConditionModel",)
        assert proof.modules == len(one.modules)
        assert proof.change[0] > 0.01
    assert_untouched(unet, before)
    with pytest.raises(KeyError, match="mine"), control.attach(unet, one):
        raise KeyError("mine")
    assert_untouched(unet, before)
    assert modules == [(name, id(module)) for name, module in unet.named_modules()]
    assert not getattr(unet, "peft_config", {})
    assert torch.equal(random, torch.get_rng_state())


def test_two_controls_add_up(pipe, one):
    second = control.Control("y", "style", random_factors(pipe.unet, seed=5))
    by_hand = tiny_unet(1)
    weights = by_hand.state_dict()
    for module in second.modules:
        weights[f"{module}.weight"] = weights[f"{module}.weight"] + 0.5 * second.change(module)
    for module in one.modules:
        weights[f"{module}.weight"] = weights[f"{module}.weight"] - 2 * one.change(module)
    by_hand.load_state_dict(weights)
    before = state(pipe.unet)
    with control.attach(pipe, one, -2.0), control.attach(pipe, second, 0.5):
        assert (answer(pipe.unet) - answer(by_hand)).abs().max() < TOLERANCE
    assert_untouched(pipe.unet, before)


def test_a_pair_of_two_networks_has_it_on_both(pair, one):
    plain = [answer(network) for network in (pair.base, pair.distilled)]
    with control.attach(pair, one, 0.5) as proof:
        assert proof.networks == ("base", "distilled")
        for network, before in zip((pair.base, pair.distilled), plain, strict=True):
            with_it = answer(network)
            assert (with_it - before).abs().max() > 100 * TOLERANCE
    assert [torch.equal(answer(n), p) for n, p in zip((pair.base, pair.distilled), plain, strict=True)] == [True, True]


@pytest.mark.parametrize("student_on", [False, True])
def test_a_student_that_is_an_adapter_stays_as_it_is(pipe, one, student_on):
    """Its own layers too, on or off, frozen or in training."""
    unet = pipe.unet
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"]), adapter_name="student")
    stir(unet)
    unet.requires_grad_(False)
    unet.enable_adapters() if student_on else unet.disable_adapters()
    trained = [parameter.requires_grad for parameter in unet.parameters()]
    plain, before = answer(unet), state(unet)
    with control.attach(unet, one, 1.0):
        strong = answer(unet)
    assert_untouched(unet, before)
    assert trained == [parameter.requires_grad for parameter in unet.parameters()]
    assert list(unet.peft_config) == ["student"]
    assert torch.equal(answer(unet), plain)
    # the oracle: the control's change added to the layers' own weights
    for module in one.modules:
        layer = unet.get_submodule(module)
        getattr(layer, "base_layer", layer).weight.data += one.change(module)
    assert (strong - answer(unet)).abs().max() < TOLERANCE


# Proofs that fail


def test_a_control_of_another_network_is_refused(pipe, factors):
    before = state(pipe.unet)
    foreign = control.Control("xl", "slider", {f"deeper.{key}": tensor for key, tensor in factors.items()})
    with pytest.raises(
        ValueError, match=r"control 'xl' is not for this UNet2DConditionModel: \d+ of its \d+ modules are not there"
    ):
        control.attach(pipe, foreign).__enter__()
    key = next(iter(factors))
    module = split(key)[0]
    wide = control.Control("wide", "slider", {module + DOWN: torch.ones(2, 99), module + UP: torch.ones(7, 2)})
    with pytest.raises(ValueError, match=r"it changes .* by \(7, 99\), whose weight is"):
        control.attach(pipe, wide).__enter__()
    norm = control.Control("norm", "slider", {"conv_norm_out.weight": torch.ones(16)})
    with pytest.raises(ValueError, match="conv_norm_out is a GroupNorm there, which takes no such change"):
        control.attach(pipe, norm).__enter__()
    assert_untouched(pipe.unet, before)


def test_a_control_that_changes_nothing_is_refused(pipe):
    tensors = {key: tensor * (not key.endswith(UP)) for key, tensor in random_factors(pipe.unet).items()}
    before = state(pipe.unet)
    with pytest.raises(ValueError, match="its output at scale 1 is the same as without: is it untrained"):
        control.attach(pipe, control.Control("new", "slider", tensors)).__enter__()
    assert_untouched(pipe.unet, before)


def test_what_cannot_be_proved_or_has_no_network_is_refused(factors):
    one = control.Control("x", "slider", factors)
    with pytest.raises(NotImplementedError, match="nothing can be proved on a Linear"):
        control.attach(torch.nn.Linear(2, 2), one).__enter__()
    with pytest.raises(ValueError, match="a str holds no denoiser"):
        control.attach("emoji-dmd", one).__enter__()
    with pytest.raises(ValueError, match="has no tensors"):
        control.Control("x", "slider", {})
    with pytest.raises(ValueError, match="named neither"):
        control.Control("x", "slider", {"bias": torch.ones(1)})
    with pytest.raises(ValueError, match="adapter='x' is not loaded"):
        control.from_adapter(tiny_unet(0), "x", name="x")


@pytest.mark.parametrize("family", ["lcm", "sdxl-refiner", "sd3", "flux", "sana", "sana-sprint"])
def test_denoisers_of_other_families_are_proved_too(family, tmp_path):
    """Inputs of their own: guidance, sizes, pooled texts, packed latents; files under the name of the part they are for."""
    pipe = PIPELINES[family]().pipe
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    plain = answer(denoiser)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, module in denoiser.named_modules():
        if name.endswith(("to_q", "to_v")):
            tensors[name + DOWN] = torch.randn(2, module.in_features, generator=generator)
            tensors[name + UP] = torch.randn(module.out_features, 2, generator=generator)
    part = "transformer" if denoiser is getattr(pipe, "transformer", None) else "unet"
    path = control.Control("x", "lora", tensors, part=part).save(tmp_path / "x.safetensors")
    assert all(key.startswith(f"{part}.") for key in load_file(path))
    with control.attach(pipe, control.load(path)) as proof:
        assert proof.change[0] > 0
        strong = answer(denoiser)
    assert torch.equal(answer(denoiser), plain)
    denoiser.load_lora_adapter(path, prefix=part, adapter_name="theirs")
    assert torch.equal(answer(denoiser), strong)
    taken = control.from_adapter(denoiser, "theirs", name="x")
    assert (taken.part, taken.fingerprint) == (part, control.load(path).fingerprint)
