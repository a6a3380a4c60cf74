import copy
import socket
import time
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

import dtviz
from dtviz import pairs as table
from dtviz.pairs import LORA, SPECS, check, load, models


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


def test_a_pair_must_fit(pipe, pair):
    unet = pipe.unet
    with pytest.raises(ValueError, match="not an adapter"):
        dtviz.Pair(pipe, "lightning")
    with pytest.raises(ValueError, match="give a denoiser module"):
        dtviz.Pair(pipe, 3)
    with pytest.raises(ValueError, match="takes 8 latent channels, the base 4: not a pair"):
        dtviz.Pair(pipe, type(unet).from_config(unet.config, in_channels=8))
    with pytest.raises(ValueError, match="takes 24 text channels, the base 16: not a pair"):
        dtviz.Pair(pipe, type(unet).from_config(unet.config, cross_attention_dim=24))
    with pytest.raises(ValueError, match="handover='late'"):
        dtviz.Pair(pipe, unet, handover="late")
    v = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    with pytest.raises(
        ValueError, match=r"takes v_prediction in vp space, and the base predicts epsilon.*matched-sigma"
    ):
        dtviz.Pair(pipe, unet, distilled_scheduler=v)
    mixed = dtviz.Pair(pipe, unet, distilled_scheduler=v, handover="matched-sigma")  # each reads its own output
    trace = dtviz.generate(mixed, "dog", method="hybrid", base_steps=8, seeds=[0])
    assert trace.steps_run["distilled"] == 3
    with pytest.raises(ValueError, match="use handover='matched-sigma'"):
        dtviz.generate(mixed, "dog", method="hybrid", handover="distilled-scheduler", seeds=[0])


def test_any_other_pair_in_ten_lines(pipe, pair):
    """The README's: two pipelines of one's own, a base and its student, are a pair."""
    fast = diffusers.StableDiffusionPipeline(
        **pipe.components | {"unet": pair.distilled, "scheduler": pair.distilled_scheduler},
        requires_safety_checker=False,
    )
    mine = dtviz.Pair(pipeline=pipe, distilled=fast, name="mine", steps=4, base_steps=8, base_guidance=3.0)
    assert mine.distilled is pair.distilled
    assert mine.distilled_scheduler is fast.scheduler
    trace = dtviz.generate(mine, "dog", method="hybrid", k=1, seeds=range(2))
    expected = dtviz.generate(replace(pair, timesteps=None), "dog", method="hybrid", k=1, seeds=range(2))
    assert torch.equal(trace.final, expected.final)
    assert dtviz.decode(trace, mine, final=True).shape == (2, 3, 16, 16)

    fast.vae = type(pipe.vae).from_config(pipe.vae.config, scaling_factor=0.5)
    with pytest.raises(
        ValueError, match="distilled's autoencoder has scaling_factor=0.5, the base's 0.18215: not a pair"
    ):
        dtviz.Pair(pipe, fast)
    fast.vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    with pytest.raises(ValueError, match="distilled has a AutoencoderTiny, the base a AutoencoderKL"):
        dtviz.Pair(pipe, fast)
