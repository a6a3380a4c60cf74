import copy
import json
import socket
import time
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import dtviz
from dtviz import pairs as table
from dtviz.pairs import LORA, SPECS, Spec, check, load, models

from .conftest import tiny_tokenizer


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub, nothing in its cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)


def test_every_pair_is_listed():
    listed = table()
    assert list(listed.index) == list(SPECS)
    assert {"base", "student", "licence", "size", "available"} <= set(listed.columns)


def test_unknown_pair_gets_a_hint():
    with pytest.raises(ValueError, match=r"pair 'emoji-dmb' is not known.*did you mean 'emoji-dmd'"):
        load("emoji-dmb")


def test_hub_pair_without_network_is_refused_fast(offline):
    start = time.monotonic()
    with pytest.raises(dtviz.Unavailable, match=r"sdxl-dmd.*model hub is out of reach.*emoji-dmd"):
        load("sdxl-dmd")
    assert time.monotonic() - start < 5


def test_embedded_pair_without_its_files(monkeypatch, tmp_path):
    monkeypatch.setenv("DTVIZ_MODELS", str(tmp_path))
    with pytest.raises(dtviz.Unavailable, match="make models"):
        check("emoji-dmd")


EMBEDDED = [name for name, spec in SPECS.items() if spec.embedded]


def test_the_shipped_models_are_small_safe_and_have_cards():
    folder = Path(__file__).parents[1] / "data" / "models"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 64 * 2**20
    assert max(path.stat().st_size for path in files) <= 16 * 2**20
    assert not {path.suffix for path in files} & {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
    zoo = (folder / "README.md").read_text()
    for name in ("emoji-base", "emoji-clip", "emoji-judges", *(SPECS[name].student for name in EMBEDDED)):
        card = (folder / name / "README.md").read_text()
        assert "licen" in card.lower()
        assert name in zoo


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_shipped_pairs(name):
    """The real models, loaded by diffusers' own classes; the middle of a red heart is red, whoever draws it."""
    pair = load(name, device="cpu")
    assert type(pair.pipeline).__name__ == "StableDiffusionPipeline"
    student = pair.base if isinstance(pair.distilled, str) else pair.distilled
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    trace = dtviz.generate(pair, "red heart", seeds=[0])
    image = dtviz.decode(trace, pair, final=True)[0]
    assert image.shape == (3, 64, 64)
    red, green, blue = image[:, 24:40, 24:40].mean((1, 2))
    assert red > green + 0.2
    assert red > blue + 0.2


def test_lightning_is_an_ode_and_the_others_are_not():
    """An ODE student's sample follows from the noise that it begins with; the others draw new noise at every step."""
    for name in (name for name in EMBEDDED if SPECS[name].file == "unet"):
        pair = load(name, device="cpu")
        generator = [torch.Generator().manual_seed(0)]
        options = {"num_inference_steps": 4, "guidance_scale": 0.0, "output_type": "latent"}
        pair.pipeline.unet, pair.pipeline.scheduler = pair.distilled, pair.distilled_scheduler
        latents = torch.randn(1, 16, 8, 8, generator=generator[0])
        first, second = (
            pair.pipeline("dog face", latents=latents, generator=generator, **options).images for _ in "ab"
        )
        assert torch.equal(first, second) == (name == "emoji-lightning")


def test_a_lora_pair_is_one_network_that_plays_both_parts():
    """Adapter off: the base. Adapter on: the base with each matrix changed by B A, worked out by hand."""
    pair, whole = load("emoji-dmd-lora", device="cpu"), load("emoji-dmd", device="cpu")
    sizes = [sum(p.numel() for p in module.parameters()) for module in (pair.base, whole.base)]
    assert sizes[0] < 1.4 * sizes[1]
    base = dtviz.generate(pair, "dog face", method="base", seeds=[0, 1], base_steps=4)
    torch.testing.assert_close(
        base.final, dtviz.generate(whole, "dog face", method="base", seeds=[0, 1], base_steps=4).final
    )

    state = load_file(models() / "emoji-dmd" / "lora" / LORA)
    student = copy.deepcopy(whole.base)
    for name, weight in student.named_parameters():
        key = f"unet.{name.removesuffix('.weight')}.lora_{{}}.weight"
        if key.format("A") in state:
            down, up = (state[key.format(part)].float().flatten(1) for part in "AB")
            weight.data += (up @ down).view_as(weight)
    reference = replace(whole, distilled=student)
    for method in ("distilled", "hybrid"):
        ours = dtviz.generate(pair, "dog face", method=method, seeds=[0, 1])
        expected = dtviz.generate(reference, "dog face", method=method, seeds=[0, 1])
        torch.testing.assert_close(ours.final, expected.final, atol=1e-3, rtol=1e-3)
    again = dtviz.generate(pair, "dog face", method="base", seeds=[0, 1], base_steps=4)
    assert torch.equal(again.final, base.final)  # the adapter is off again


def test_fingerprints_tell_students_apart_and_say_that_their_base_is_one():
    pairs = [load(name, device="cpu") for name in ("emoji-dmd", "emoji-dmd-lora", "emoji-lcm")]
    assert len({pair.fingerprint for pair in pairs}) == 3
    assert len({pair.base_fingerprint for pair in pairs}) == 1


def test_loading_an_embedded_pair_is_silent(capfd):
    load("emoji-dmd-lora", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert diffusers.utils.logging.is_progress_bar_enabled()


def test_the_base_loads_as_any_pipeline():
    """With diffusers alone and no dtype said, from half-precision files."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(models() / "emoji-base")
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}


def tiny_sdxl(folder: Path) -> torch.nn.Module:
    """A random SDXL pipeline of the published layout in `folder`; returns its UNet."""
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tiny_tokenizer()), hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=32, hidden_act="gelu",
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=80, cross_attention_dim=64,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
    ).save_pretrained(folder)
    return unet


@pytest.mark.parametrize("name", ["sdxl-dmd", "sdxl-lcm", "sdxl-turbo", "sdxl-lightning"])
def test_hub_pairs_at_tiny_size(name, tmp_path, monkeypatch):
    """The hub pairs' loading code on random weights in each repository's published layout, then every method."""
    spec = SPECS[name]
    base, student = tmp_path / "org" / "base", tmp_path / "org" / "student"
    unet = tiny_sdxl(base)
    if spec.file.endswith(".safetensors"):
        student.mkdir()
        save_file(unet.state_dict(), student / spec.file)
    else:
        other = unet
        if name == "sdxl-lcm":
            other = diffusers.UNet2DConditionModel.from_config(unet.config, time_cond_proj_dim=16)
        other.save_pretrained(student / spec.file)
    settings = spec.settings | ({"size": (16, 16)} if "size" in spec.settings else {})
    local = Spec(**{**vars(spec), "base": str(base), "student": str(student), "settings": settings})
    monkeypatch.setitem(SPECS, name, local)
    pair = load(name, device="cpu")
    assert type(pair.distilled_scheduler).__name__ == spec.scheduler
    for method in ("base", "distilled", "hybrid", "skip"):
        trace = dtviz.generate(pair, "dog", method=method, base_steps=3, seeds=[0, 1], batch_size=2)
        assert torch.isfinite(trace.final).all()
    plain = pair.pipeline(
        "dog",
        generator=[torch.Generator().manual_seed(0)],
        num_inference_steps=3,
        guidance_scale=5.0,
        output_type="latent",
    )
    base = dtviz.generate(pair, "dog", method="base", base_steps=3, seeds=[0])
    torch.testing.assert_close(base.final, plain.images, atol=1e-3, rtol=1e-3)
    if (
        name != "sdxl-lcm"
    ):  # here base and student have the same weights: guidance just over 1 doubles the base's batch,
        # changes nothing else, and the student's steps take the prompt's half of it
        doubled = dtviz.generate(pair, "dog", method="hybrid", base_guidance=1 + 1e-6, seeds=[0])
        alone = dtviz.generate(pair, "dog", method="distilled", seeds=[0])
        torch.testing.assert_close(doubled.final, alone.final, atol=1e-3, rtol=1e-3)
    matched = dtviz.generate(pair, "dog", method="hybrid", handover="matched-sigma", base_steps=10, seeds=[0])
    assert matched.steps_run["distilled"] == 3
    assert json.dumps(matched.facts())


def test_a_pair_must_fit(pipe):
    with pytest.raises(ValueError, match="not an adapter"):
        dtviz.Pair(pipe, "lightning")
    with pytest.raises(ValueError, match="give a denoiser module"):
        dtviz.Pair(pipe, 3)
    with pytest.raises(ValueError, match="not a pair"):
        dtviz.Pair(
            pipe,
            diffusers.UNet2DConditionModel(
                in_channels=8,
                sample_size=8,
                block_out_channels=(32,),
                down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",),
            ),
        )
    with pytest.raises(ValueError, match="handover='late'"):
        dtviz.Pair(pipe, pipe.unet, handover="late")
