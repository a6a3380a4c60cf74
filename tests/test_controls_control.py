"""Control files: other people's formats against diffusers' own loading, refusals, and what dtviz ships."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import dtviz
from dtviz import controls
from dtviz.controls.control import DOWN, UP, Control, split
from dtviz.models.classifiers import load_classifier

from .conftest import answer, random_factors
from .tiny import PIPELINES

FOLDER = Path(__file__).parents[1] / "data" / "controls"
SCALES = (-1.0, 0.5, 2.0)
TOLERANCE = 1e-5  # float32 outputs of size one, after some thirty layers
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


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
        module, form = split(key)
        flat = "lora_unet_" + module.replace(".", "_")
        renamed[f"{flat}.{'lora_down' if form == DOWN else 'lora_up'}.weight"] = tensor
        renamed[f"{flat}.alpha"] = torch.tensor(alpha)
    return renamed


def attached(pipe, control: Control, scale: float) -> torch.Tensor:
    with controls.attach(pipe, control, scale=scale):
        return answer(pipe.unet)


def assert_as_diffusers(pipe, path, control: Control) -> None:
    """The control has the effect of the file that diffusers loads itself."""
    plain = answer(pipe.unet)
    for scale in SCALES:
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="reference")
        pipe.set_adapters("reference", scale)
        expected = answer(pipe.unet)
        pipe.unload_lora_weights()
        assert (expected - plain).abs().max() > 100 * TOLERANCE
        assert (attached(pipe, control, scale) - expected).abs().max() < TOLERANCE
    assert torch.equal(answer(pipe.unet), plain)


def copy_of(unet):
    copy = type(unet).from_config(unet.config)
    copy.load_state_dict(unet.state_dict())
    return copy.eval()


def stir(unet) -> None:
    """Random LoRA factors, as if trained: peft starts with a product of 0."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4


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
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="smile.safetensors: it is damaged"):
        controls.load(path)


def test_kohya(sdxl, factors, tmp_path):
    path = tmp_path / "slider.safetensors"
    save_file(kohya(factors, alpha=1.0), path)
    loaded = controls.load(path)
    assert (loaded.name, loaded.kind, set(loaded.tensors)) == ("slider", "lora", set(factors))
    assert_as_diffusers(sdxl, path, loaded)
    torch.save(kohya(factors, alpha=1.0), tmp_path / "age.pt")
    assert controls.load(tmp_path / "age.pt").fingerprint == loaded.fingerprint


def test_diffusers_file_with_settings_in_its_metadata(sdxl, tmp_path):
    """As the training scripts write it, with alpha other than rank and a module's own alpha and rank."""
    unet = copy_of(sdxl.unet)
    patterns = {"alpha_pattern": {"attn2.to_v": 2}, "rank_pattern": {"attn2.to_v": 3}}
    unet.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_v", "to_out.0"], **patterns), "trained")
    stir(unet)
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
        module, end = split(key)
        if ".attn" in key:
            attention, projection = module.split(".to_")
            half = "down" if end == DOWN else "up"
            renamed[f"unet.{attention}.processor.to_{projection.removesuffix('.0')}_lora.{half}.weight"] = tensor
    save_file(renamed, tmp_path / "old.safetensors")
    loaded = controls.load(tmp_path / "old.safetensors")
    assert set(loaded.tensors) == {key for key in factors if ".attn" in key}
    assert_as_diffusers(sdxl, tmp_path / "old.safetensors", loaded)


def test_peft_folder_of_rank_stabilised_scale(sdxl, tmp_path):
    """adapter_config.json beside adapter_model.safetensors; rsLoRA scales by alpha / sqrt(rank)."""
    unet = copy_of(sdxl.unet)
    model = get_peft_model(unet, LoraConfig(r=4, lora_alpha=3, target_modules=["to_k", "to_v"], use_rslora=True))
    stir(unet)
    model.save_pretrained(tmp_path / "toy")
    loaded = controls.load(tmp_path / "toy", weight_name="adapter_model.safetensors")
    assert loaded.name == "toy"
    assert (attached(sdxl, loaded, 1.0) - answer(unet)).abs().max() < TOLERANCE


def test_text_encoder_parts_are_named_and_left_out(factors, tmp_path):
    tensors = {f"unet.{key}": tensor for key, tensor in factors.items()}
    tensors |= {f"text_encoder.x.q_proj{form}": torch.ones(4, 4) for form in (DOWN, UP)}
    save_file(tensors, tmp_path / "both.safetensors")
    assert controls.load(tmp_path / "both.safetensors").facts == {"left_out": ["text_encoder, 2 tensors"]}
    save_file({key: tensor for key, tensor in tensors.items() if "text" in key}, tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="none of it is for the denoiser, but text_encoder, 2 tensors"):
        controls.load(tmp_path / "text.safetensors")


def test_custom_diffusion_equals_hand_added_weights_and_diffusers_processors(sdxl, tmp_path):
    state, generator = sdxl.unet.state_dict(), torch.Generator().manual_seed(2)
    names = [name for name in state if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    tuned = {name: state[name] + torch.randn(state[name].shape, generator=generator) / 5 for name in names}
    renamed = {
        name.replace(".to_", ".processor.to_").replace(".weight", "_custom_diffusion.weight"): tensor
        for name, tensor in tuned.items()
    }
    torch.save(renamed, tmp_path / "pytorch_custom_diffusion_weights.bin")
    loaded = controls.load(tmp_path, weight_name="pytorch_custom_diffusion_weights.bin", base=sdxl)
    assert (loaded.kind, set(loaded.tensors)) == ("custom-diffusion", set(tuned))
    for scale in SCALES:
        by_hand = copy_of(sdxl.unet)
        by_hand.load_state_dict(state | {key: state[key] + scale * (t - state[key]) for key, t in tuned.items()})
        assert (attached(sdxl, loaded, scale) - answer(by_hand)).abs().max() < TOLERANCE
    other = PIPELINES["sdxl"]().pipe
    other.unet.load_state_dict(state)
    empty = {name: {} for name in other.unet.attn_processors if ".attn1." in name}
    other.unet.load_attn_procs(renamed | empty, _pipeline=other)
    assert (attached(sdxl, loaded, 1.0) - answer(other.unet)).abs().max() < TOLERANCE


# Refusals

PLAIN = {f"unet.{ATTENTION}.to_q{DOWN}": torch.ones(2, 3), f"unet.{ATTENTION}.to_q{UP}": torch.ones(4, 2)}
HADA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_{}_attn1_to_k.hada_w1_a"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({HADA.format(i): torch.ones(2, 2) for i in range(722)}, "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_k.hada_w1_a"),
        (PLAIN | {f"unet.{ATTENTION}.to_q.lora_magnitude_vector": torch.ones(4)}, "no LoRA factors: .*lora_magnitude_vector"),
        (kohya(PLAIN, 1.0) | {"lora_unet_a.dora_scale": torch.ones(4)}, "it is a DoRA"),
        (PLAIN | {f"unet.{ATTENTION}.to_q.lora_B.bias": torch.ones(4)}, "1 of its 3 tensors are no LoRA factors: .*lora_B.bias"),
        (PLAIN | {"unet.conv_in.weight": torch.ones(4)}, "1 of its 3 tensors are no LoRA factors: conv_in.weight"),
        (kohya(PLAIN, 1.0) | {"lora_unet_a.diff": torch.ones(4)}, "lora_unet_a"),
        (kohya(PLAIN, 1.0) | {"strange": torch.ones(1)}, "3 of its 4 tensors are no LoRA factors: .*, strange"),
        ({f"unet.a{DOWN}": torch.ones(2, 3)}, "module 'a' needs lora_A.weight .* and has .'a.lora_A.weight'"),
        (PLAIN | {f"unet.{ATTENTION}.to_q{UP}": torch.full((4, 2), torch.nan)}, f"tensor '{ATTENTION}.to_q.lora_B.weight' .* nan or inf"),
        (kohya(PLAIN | {f"unet.{ATTENTION}.to_q{UP}": torch.full((4, 2), torch.inf)}, 1.0), "holds nan or infinity"),
        ({"x.processor.to_k_custom_diffusion.weight": torch.ones(2, 2)}, "give base=, the pair, pipeline or denoiser"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_applied_exactly_is_refused_in_one_line(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        controls.load(tmp_path / "x.safetensors")
    text = str(error.value).removeprefix(f"{tmp_path}/")
    assert text.startswith("x.safetensors: ")
    assert len(text) < 300
    assert "\n" not in text


def test_no_code_of_a_file_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("owned",))

    torch.save({"lora_unet_a.lora_down.weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read as weights only; nothing in it was run"):
        controls.load(tmp_path / "evil.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="cannot be read, is it damaged"):
        controls.load(tmp_path / "cut.safetensors")


def test_missing_files(factors, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match="is no shipped control, file, folder with"):
        controls.load(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="folder with pytorch_lora_weights.safetensors .or weight_name."):
        controls.load(tmp_path)
    with pytest.raises(dtviz.Unavailable, match="of control 'someone/lego' is not in this machine's hub cache"):
        controls.load("someone/lego")
    save_file(factors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="adapter_config.json"):  # alpha is unknown without it
        controls.load(tmp_path, weight_name="adapter_model.safetensors")


def test_a_repository_in_the_hubs_cache_is_read_offline(factors, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--someone--lego"
    folder = repo / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    save_file({f"base_model.model.{key}": t for key, t in factors.items()}, folder / "adapter_model.safetensors")
    settings = {"r": 4, "lora_alpha": 1, "alpha_pattern": {"mid_block.*": 2}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    loaded = controls.load("someone/lego", weight_name="adapter_model.safetensors")
    assert loaded.name == "lego"
    for module in loaded.modules:
        expected = factors[module + UP] * (2 if module.startswith("mid_block") else 1) / len(factors[module + DOWN])
        assert torch.equal(loaded.tensors[module + UP], expected)


# Control and Applied


def test_alpha_in_half_precision_loses_nothing(tmp_path):
    """alpha / rank = 1 / 4 is exact in float16. 1 / 3 is not, and takes float32."""
    half = {f"{ATTENTION}.to_q{DOWN}": torch.ones(4, 2).half(), f"{ATTENTION}.to_q{UP}": torch.full((3, 4), 0.3).half()}
    for alpha, dtype in ((1.0, torch.float16), (4 / 3, torch.float32)):
        save_file(kohya(half, alpha), tmp_path / "x.safetensors")
        up = controls.load(tmp_path / "x.safetensors").tensors[f"{ATTENTION}.to_q{UP}"]
        assert up.dtype == dtype
        assert torch.equal(up.float(), half[f"{ATTENTION}.to_q{UP}"].float() * (torch.tensor(alpha).item() / 4))


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


# Shipped controls


@pytest.fixture(scope="module")
def shipped() -> list[Control]:
    return controls.shipped()


def test_shipped_files_are_small_and_safe_and_have_a_card(shipped):
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4 * 2**20
    assert {path.suffix for path in files} <= {".safetensors", ".md", ".csv"}
    card = (FOLDER / "README.md").read_text()
    assert all(f"| {control.name} |" in card for control in shipped)
    on_base = [control for control in shipped if control.facts["trained_on"]["role"] == "base"]
    for kind in ("slider", "style"):
        assert len({control.name for control in on_base if control.kind == kind}) >= 3


def test_shipped_facts(shipped):
    """Licences follow the drawings, origins are today's models, and no style was trained on a studied prompt."""
    from dtviz.experiments.paper import EMOJI_PROMPTS

    pairs = {name: dtviz.load(name, device="cpu") for name in {c.facts["trained_on"]["pair"] for c in shipped}}
    for control in shipped:
        facts, origin = control.facts, control.facts["trained_on"]
        assert facts["licence"] == ("CC-BY-SA-4.0" if control.name in ("openmoji", "emojione-v1") else "MIT")
        pair = pairs[origin["pair"]]
        assert origin["fingerprint"] == (pair.base_fingerprint if origin["role"] == "base" else pair.fingerprint)
        if control.kind == "slider":
            assert len(facts["positive"]) == len(facts["negative"]) == len(facts["prompts"])
        else:
            assert facts["towards"] in load_classifier("style").classes
            assert not set(facts["prompts"]) & set(EMOJI_PROMPTS)
        with controls.attach(pairs["emoji-dmd"], control) as attached:
            assert len(attached.hooks[0]) == 2
