"""What the doctor says of this machine, of the hub's cache, and of pairs that lack something."""

import json

import pytest

from dtviz import doctor
from dtviz.__main__ import main
from dtviz.models.available import found, lacking, missing
from dtviz.pairs import SPECS

COMMIT = "462165984030d82259a11f4367a4eed129e94a7b"  # the one that dtviz knows of SDXL's base


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    return tmp_path


def put(cache, repo: str, commit: str, *files: str) -> None:
    """Files as the hub's own client lays them out."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    for file in files:
        path = folder / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = folder / "blobs" / file.replace("/", "-")
        blob.parent.mkdir(exist_ok=True)
        parts = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
        parts |= {"text_encoder": ["transformers", "CLIPTextModel"], "feature_extractor": [None, None]}
        blob.write_text(json.dumps(parts) if file == "model_index.json" else "x")
        path.symlink_to(blob)


def test_a_pair_becomes_ready_file_by_file(cache):
    base, student = SPECS["sdxl-lightning"].base, SPECS["sdxl-lightning"].student
    assert set(lacking("sdxl-lightning")) == {base, student}
    half = ["unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    put(cache, base, COMMIT, "model_index.json", *half)
    assert lacking("sdxl-lightning")[base] == ["text_encoder/model.safetensors"]
    put(cache, base, COMMIT, "text_encoder/model.safetensors.index.json")  # in several files
    assert missing("sdxl-lightning") == student
    put(cache, student, "c9a24f48e1c025556787b0c58dd67a091ece2e44", SPECS["sdxl-lightning"].file)
    assert missing("sdxl-lightning") == ""
    assert found(base, "model_index.json", revision="0" * 40) is None  # another commit is another model


def test_the_report(cache):
    put(cache, SPECS["sdxl-dmd"].base, COMMIT, "model_index.json")
    told = doctor.report(pairs=["emoji-dmd", "sdxl-dmd", "sdxl-lightning", "pixart-lcm"])
    for line in (
        "Model hub: offline by HF_HUB_OFFLINE",
        f"stabilityai/stable-diffusion-xl-base-1.0: 0.00 GB, at {COMMIT}",
        "efficientnet-lite0: ready",
        "dreamsim:ensemble: not here; with network",
        "emoji-dmd: ready, 27 MiB",
        "fits together",
        "sdxl-dmd: not here, 12.1 GB",
        "lacks unet/diffusion_pytorch_model.safetensors",
        "hf download tianweiy/DMD2 dmd2_sdxl_4step_unet_fp16.safetensors --revision be2276",
        "hf download ByteDance/SDXL-Lightning sdxl_lightning_4step_unet.safetensors --revision c9a24f",
        f"DiffusionPipeline.download('stabilityai/stable-diffusion-xl-base-1.0', revision='{COMMIT}', variant='fp16'",
        "hf download PixArt-alpha/PixArt-LCM-XL-2-1024-MS --include 'transformer/*' --revision 0716",
    ):
        assert line in told


def test_the_command(cache, capsys):
    assert main(["doctor", "emoji-dmd"]) == 0
    assert "emoji-dmd: ready" in capsys.readouterr().out
    assert main(["doctor", "sdxl"]) == 2
    assert "pair 'sdxl' is not known" in capsys.readouterr().err
