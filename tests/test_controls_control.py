"""Control files: other people's formats against diffusers' own loading, refusals, and what dtviz ships."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

import dtviz
from dtviz import controls
from dtviz.controls.control import DOWN, UP, Control, module_of
from dtviz.models.classifiers import load_classifier
from dtviz.models.load import _fingerprints, local_folders
from dtviz.models.registry import SPECS

from .conftest import answer, random_factors
from .tiny import PIPELINES

FOLDER = Path(__file__).parents[1] / "data" / "controls"
SCALES = (-1.0, 2.0)
TOLERANCE = 1e-5  # float32 outputs of size one, after some thirty layers
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def sdxl():
    """Stable Diffusion XL's classes at tiny random size."""
    return PIPELINES["sdxl"]().pipe


@pytest.fixture(scope="module")
def factors(sdxl) -> dict[str, torch.Tensor]:
    return random_factors(sdxl.unet)


def kohya(tensors: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """The same tensors under kohya's names."""
    renamed = {}
    for key, tensor in tensors.items():
        flat = "lora_unet_" + module_of(key).replace(".", "_")
        renamed[f"{flat}.{'lora_down' if key.endswith(DOWN) else 'lora_up'}.weight"] = tensor
        renamed[f"{flat}.alpha"] = torch.tensor(alpha)
    return renamed


def attached(pipe, control: Control, scale: float) -> torch.Tensor:
    with controls.attach(pipe, control, scale=scale):
        return answer(pipe.unet)


def assert_as_diffusers(pipe, path, control: Control) -> None:
    """The control has the effect of the file that diffusers loads itself."""
    plain = answer(pipe.unet)
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="reference")
    expected = {}
    for scale in SCALES:
        pipe.set_adapters("reference", scale)
        expected[scale] = answer(pipe.unet)
    pipe.unload_lora_weights()
    for scale in SCALES:
        assert (expected[scale] - plain).abs().max() > 100 * TOLERANCE
        assert (attached(pipe, control, scale) - expected[scale]).abs().max() < TOLERANCE
    assert torch.equal(answer(pipe.unet), plain)


# Formats


def test_own_file_comes_back_and_is_a_diffusers_lora(sdxl, factors, tmp_path):
    facts = {"prompts": ["face"], "trained_on": {"pair": "emoji-dmd", "role": "base"}, "licence": "MIT"}
    control = Control("smile", "slider", factors, facts)
    path = control.save(tmp_path / "deep" / "smile.safetensors")
    loaded = controls.load(path)
    assert (loaded.name, loaded.kind, loaded.facts) == ("smile", "slider", facts)
    assert loaded.fingerprint == control.fingerprint
    assert controls.load(path, name="grin").name == "grin"
    assert path.read_bytes() == control.save(tmp_path / "again.safetensors").read_bytes()
    assert_as_diffusers(sdxl, path, loaded)


def test_kohya_and_its_copy(sdxl, factors, tmp_path):
    """As Concept Sliders are published. The copy of dtviz keeps the names."""
    path = tmp_path / "slider.safetensors"
    save_file(kohya(factors, alpha=1.0), path)
    loaded = controls.load(path)
    assert (loaded.name, loaded.kind, len(loaded.modules)) == ("slider", "lora", len(factors) // 2)
    assert_as_diffusers(sdxl, path, loaded)
    assert controls.load(loaded.save(tmp_path / "own.safetensors")).fingerprint == loaded.fingerprint
    torch.save(kohya(factors, alpha=1.0), tmp_path / "age.pt")
    assert controls.load(tmp_path / "age.pt").fingerprint == loaded.fingerprint


def test_kohyas_names_of_the_original_sdxl_with_convolutions_and_text(tmp_path):
    """`input_blocks_4_1` is `down_blocks.1.attentions.0` in diffusers. Convolutions keep their kernel in the first factor."""
    shapes = {
        "input_blocks_4_1_transformer_blocks_0_attn2_to_k": ((2, 5), (3, 2)),
        "middle_block_1_proj_in": ((2, 3), (3, 2)),
        "output_blocks_1_0_in_layers_2": ((2, 4, 3, 3), (3, 2, 1, 1)),
        "input_blocks_3_0_op": ((2, 3, 3, 3), (3, 2, 1, 1)),
    }
    tensors = {}
    for module, (down, up) in shapes.items():
        key = f"lora_unet_{module}"
        tensors |= {f"{key}.lora_down.weight": torch.rand(down), f"{key}.lora_up.weight": torch.rand(up)}
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    text = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    tensors |= {f"{text}.lora_down.weight": torch.rand(2, 5), f"{text}.lora_up.weight": torch.rand(4, 2)}
    save_file(tensors, tmp_path / "x.safetensors")
    control = controls.load(tmp_path / "x.safetensors")
    names = ["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "mid_block.attentions.0.proj_in"]
    names += ["up_blocks.0.resnets.1.conv1", "down_blocks.0.downsamplers.0.conv"]
    for name, module in zip(names, shapes, strict=True):
        assert torch.equal(control.tensors[name + DOWN], tensors[f"lora_unet_{module}.lora_down.weight"])
        assert torch.equal(control.tensors[name + UP], tensors[f"lora_unet_{module}.lora_up.weight"] / 2)
    assert control.modules == tuple(sorted(names))
    assert control.facts == {"left_out": ["text_encoder_2, 2 tensors"]}


def test_flux_sliders_have_underscores_for_dots(tmp_path):
    net = PIPELINES["flux"]().pipe.transformer
    linear = {n: m for n, m in net.named_modules() if isinstance(m, torch.nn.Linear) and ".attn." in n}
    tensors = {name + DOWN: torch.randn(2, layer.in_features) for name, layer in linear.items()}
    tensors |= {name + UP: torch.randn(layer.out_features, 2) for name, layer in linear.items()}
    save_file(kohya(tensors, alpha=1.0), tmp_path / "slider.safetensors")
    slider = controls.load(tmp_path / "slider.safetensors")
    with controls.attach(net, slider) as block:
        layers = block.hooks[0][0].layers
        assert {id(layer) for layer in layers.values()} == {id(layer) for layer in linear.values()}
        for name, layer in linear.items():
            assert layers[name.replace(".", "_")] is layer
            assert torch.equal(slider.tensors[name.replace(".", "_") + UP], tensors[name + UP] / 2)


def test_diffusers_file_with_settings_in_its_metadata(sdxl, tmp_path):
    """As the training scripts write it, with alpha other than rank."""
    unet = type(sdxl.unet).from_config(sdxl.unet.config)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v"], init_lora_weights=False), "trained")
    unet.save_lora_adapter(tmp_path, adapter_name="trained", weight_name="plain.safetensors")
    metadata = unet.peft_config["trained"].to_dict()
    tensors = load_file(tmp_path / "plain.safetensors")
    type(sdxl).save_lora_weights(tmp_path, unet_lora_layers=tensors, unet_lora_adapter_metadata=metadata)
    loaded = controls.load(tmp_path)
    assert loaded.name == tmp_path.name
    assert_as_diffusers(sdxl, tmp_path / "pytorch_lora_weights.safetensors", loaded)


def test_older_diffusers_names(sdxl, factors, tmp_path):
    """`processor.to_q_lora.down.weight`, without alpha."""
    renamed = {}
    for key, tensor in factors.items():
        if ".attn" in key:
            attention, projection = module_of(key).split(".to_")
            half = "down" if key.endswith(DOWN) else "up"
            renamed[f"unet.{attention}.processor.to_{projection.removesuffix('.0')}_lora.{half}.weight"] = tensor
    save_file(renamed, tmp_path / "old.safetensors")
    loaded = controls.load(tmp_path / "old.safetensors")
    assert set(loaded.tensors) == {key for key in factors if ".attn" in key}
    assert_as_diffusers(sdxl, tmp_path / "old.safetensors", loaded)


@pytest.mark.parametrize(
    "settings", [{"use_rslora": True}, {"alpha_pattern": {"to_q": 2}}, {"init_lora_weights": "pissa_niter_4"}], ids=str
)
def test_settings_that_change_scale_or_base_are_refused(settings, factors, tmp_path):
    [(key, _)] = settings.items()
    header = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in settings.items()})}
    save_file({f"unet.{name}": tensor for name, tensor in factors.items()}, tmp_path / "x.safetensors", header)
    with pytest.raises(ValueError, match=f"its settings have {key}=.*, which is not supported"):
        controls.load(tmp_path / "x.safetensors")


def test_text_encoder_parts_are_named_and_left_out(factors, tmp_path):
    tensors = {f"unet.{key}": tensor for key, tensor in factors.items()}
    tensors |= {f"text_encoder.x.q_proj{form}": torch.ones(4, 4) for form in (DOWN, UP)}
    save_file(tensors, tmp_path / "both.safetensors")
    assert controls.load(tmp_path / "both.safetensors").facts == {"left_out": ["text_encoder, 2 tensors"]}
    save_file({key: tensor for key, tensor in tensors.items() if "text" in key}, tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="none of it is for the denoiser, but text_encoder, 2 tensors"):
        controls.load(tmp_path / "text.safetensors")


# Refusals

PLAIN = {f"unet.{QUERY}{DOWN}": torch.ones(2, 3), f"unet.{QUERY}{UP}": torch.ones(4, 2)}
KOHYA = kohya({key.removeprefix("unet."): tensor for key, tensor in PLAIN.items()}, 1.0)
LOHA = {f"lora_unet_down_blocks_1_transformer_blocks_{i}_attn1_to_k.hada_w1_a": torch.ones(2, 2) for i in range(722)}
HALF = {key: tensor for key, tensor in KOHYA.items() if "lora_up" not in key}


REFUSED = [
    (LOHA, "722 of its 722 tensors are no LoRA factors: lora_unet_down_blocks_1_.*hada_w1_a"),
    (KOHYA | {"lora_unet_b.lokr_w1": torch.ones(2, 2)}, "1 of its 4 .*: lora_unet_b.lokr_w1"),
    (KOHYA | {"lora_unet_b.lora_mid.weight": torch.ones(2, 2)}, "1 of its 4 .*: lora_unet_b.lora_mid.weight"),
    (PLAIN | {f"unet.{QUERY}.lora_magnitude_vector": torch.ones(4)}, "1 of its 3 .*magnitude_vector"),
    (KOHYA | {"lora_unet_a.dora_scale": torch.ones(4)}, "1 of its 4 .*: lora_unet_a.dora_scale"),
    ({f"base_model.model.{key}": tensor for key, tensor in PLAIN.items()}, "it is a peft adapter without its alpha"),
    (PLAIN | {f"unet.{QUERY}.lora_B.bias": torch.ones(4)}, "1 of its 3 tensors are no LoRA factors: .*lora_B.bias"),
    (PLAIN | {"unet.conv_in.weight": torch.ones(4)}, "1 of its 3 tensors are no LoRA factors: conv_in.weight"),
    (KOHYA | {"lora_unet_a.diff": torch.ones(4), "lora_unet_a.diff_b": torch.ones(4)}, "2 of its 5 .*: a.diff, a.diff_b"),
    (KOHYA | {"strange": torch.ones(1)}, "1 of its 4 tensors are no LoRA factors: strange"),
    (KOHYA | {"lora_unet_b.alpha": torch.ones(1)}, "1 of its 4 tensors are no LoRA factors: b.alpha"),
    (HALF, "no LoRA factors: down_blocks_0.*alpha"),
    ({f"unet.a{DOWN}": torch.ones(2, 3)}, r"module 'a' needs lora_A.weight .* and has \(2, 3\) and None"),
    ({f"unet.a{DOWN}": torch.ones(2, 3), f"unet.a{UP}": torch.ones(4, 3)}, r"module 'a' needs .* has \(2, 3\) and \(4, 3\)"),
    (PLAIN | {f"unet.{QUERY}{UP}": torch.full((4, 2), torch.nan)}, f"tensor '{QUERY}.lora_B.weight' .* nan or inf"),
    ({key: t * (torch.inf if "lora_up" in key else 1) for key, t in KOHYA.items()}, "holds nan or infinity"),
    ({"x.processor.to_k_custom_diffusion.weight": torch.ones(2, 2)}, "1 of its 1 .*to_k_custom_diffusion.weight"),
]  # fmt: skip


@pytest.mark.parametrize(("tensors", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_applied_exactly_is_refused_in_one_line(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        controls.load(tmp_path / "x.safetensors")
    assert re.fullmatch(r"x\.safetensors: .{,284}", str(error.value).removeprefix(f"{tmp_path}/"))  # one line


def test_missing_files(factors, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for path in (tmp_path / "x.safetensors", "./lego/age", "../lego", "a/b/c", "~/lego"):
        with pytest.raises(FileNotFoundError, match="is no shipped control, file, folder with"):
            controls.load(path)
    with pytest.raises(FileNotFoundError, match="folder with pytorch_lora_weights.safetensors .or weight_name."):
        controls.load(tmp_path)
    with pytest.raises(dtviz.Unavailable, match="of control 'someone/lego' is neither a file here nor .* out of reach"):
        controls.load("someone/lego")

    def refuse(repo, name, local_files_only=False):
        raise FileNotFoundError("not in the cache") if local_files_only else RuntimeError("404\nRepository Not Found")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("dtviz.controls.control.hub_reachable", lambda: True)
    message = "the model hub does not give it: RuntimeError: 404 Repository Not Found"
    with pytest.raises(dtviz.Unavailable, match=message):
        controls.load("someone/lego")
    save_file(factors, tmp_path / "lego.safetensors")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(tmp_path / "lego.safetensors"))
    assert controls.load("someone/lego").name == "lego"


# Control and Applied


def test_alpha_in_half_precision_loses_nothing(tmp_path):
    """alpha / rank = 1 / 4 is exact in float16. 1 / 3 is not, and takes float32."""
    half = {f"a{DOWN}": torch.ones(4, 2).half(), f"a{UP}": torch.full((3, 4), 0.3).half()}
    for alpha, dtype in ((1.0, torch.float16), (4 / 3, torch.float32)):
        save_file(kohya(half, alpha), tmp_path / "x.safetensors")
        up = controls.load(tmp_path / "x.safetensors").tensors[f"a{UP}"]
        assert up.dtype == dtype
        assert torch.equal(up.float(), half[f"a{UP}"].float() * (torch.tensor(alpha).item() / 4))


def test_control_and_applied_refuse(factors):
    for settings, message in (
        ({"scale": float("nan")}, "scale=nan must be a finite number"),
        ({"segment": "student"}, "segment='student' is not one of both, base, distilled"),
        ({"window": (1.0, 4.0)}, "must be .high, low. finite noise levels"),
        ({"window": (1.0,)}, "must be .high, low."),
    ):
        with pytest.raises(ValueError, match=message):
            Control("x", "slider", factors).at(**settings)
    with pytest.raises(ValueError, match="has no tensors"):
        Control("x", "slider", {})
    with pytest.raises(ValueError, match="named neither"):
        Control("x", "slider", {"bias": torch.ones(1)})


def test_applied_says_when_it_is_on(factors):
    control = Control("smile", "slider", factors)
    applied = control.at(2.0, segment="base", window=(4.0, 1.0))
    assert str(applied) == "smile x 2 (base, sigma 4 to 1)"
    assert [applied.on("base", sigma) for sigma in (4.01, 4.0, 1.0, 0.9)] == [False, True, True, False]
    assert not applied.on("distilled", 2.0)
    assert not control.at(0.0).on("base", 2.0)
    assert json.loads(json.dumps(applied.facts()))["window"] == [4.0, 1.0]


def test_shipped_controls_are_small_safe_and_documented(emoji):
    """Licences follow the drawings, origins are today's models, and no style was trained on a studied prompt."""
    from dtviz.experiments.paper import EMOJI_PROMPTS

    shipped, files = controls.shipped(), [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4 * 2**20
    assert {path.suffix for path in files} <= {".safetensors", ".md", ".csv"}
    card = (FOLDER / "README.md").read_text()
    assert all(f"| {control.name} |" in card for control in shipped)
    names = {(control.kind, control.name) for control in shipped if control.facts["trained_on"]["role"] == "base"}
    assert min([kind for kind, _ in names].count(kind) for kind in ("slider", "style")) >= 3
    specs = {name: SPECS[name] for name in {control.facts["trained_on"]["pair"] for control in shipped}}
    prints = {name: _fingerprints(spec, local_folders(spec)) for name, spec in specs.items()}
    for control in shipped:
        facts, origin = control.facts, control.facts["trained_on"]
        assert facts["licence"] == ("CC-BY-SA-4.0" if control.name in ("openmoji", "emojione-v1") else "MIT")
        which = "base_fingerprint" if origin["role"] == "base" else "fingerprint"
        assert origin["fingerprint"] == prints[origin["pair"]][which]
        if control.kind == "slider":
            assert len(facts["positive"]) == len(facts["negative"]) == len(facts["prompts"])
        else:
            assert facts["towards"] in load_classifier("style").classes
            assert not set(facts["prompts"]) & set(EMOJI_PROMPTS)
        with controls.attach(emoji, control) as block:
            assert len(block.hooks[0]) == 2
