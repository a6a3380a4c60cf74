"""Two networks in memory, or one with a LoRA: `make bench` writes figures/bench/memory.csv, at SDXL's full size.

SDXL's UNet with made-up weights, four steps, one sample: 1024 px on an accelerator, 512 on a CPU. In each process the student runs alone first and the
hybrid after it, so that peak memory and seconds are compared within one run: the peak of a process only grows.
"""

from __future__ import annotations

import json
import subprocess
import sys

import diffusers
import torch
from peft import LoraConfig

import dtviz
from tests.published import SDXL_UNET

from .measure import peak, publish, timed

# LCM-LoRA's: rank 64 on every attention, feed-forward and convolution.
LORA = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut",
    "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIDE = 1024 if DEVICE == "cuda" else 512
DTYPE = torch.float16 if DEVICE == "cuda" else torch.bfloat16


def unet() -> diffusers.UNet2DConditionModel:
    """SDXL's denoiser; its weights are all the same, which costs what trained ones do."""
    with torch.device("meta"):  # filled below: drawing 2.6 billion weights takes longer than the run
        denoiser = diffusers.UNet2DConditionModel(**SDXL_UNET)
    denoiser = denoiser.to(DTYPE).to_empty(device=DEVICE).eval().requires_grad_(False)
    for parameter in denoiser.parameters():
        parameter.fill_(0.01)
    return denoiser


def pipeline(denoiser: diffusers.UNet2DConditionModel) -> diffusers.StableDiffusionXLPipeline:
    """SDXL's pipeline around it; the text comes as embeddings, and nothing is decoded."""
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(4, 4, 4, 4), norm_num_groups=1, layers_per_block=1).to(DEVICE, DTYPE),
        text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=denoiser,
        scheduler=diffusers.LCMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: diffusers.StableDiffusionXLPipeline) -> None:
    text = torch.zeros(1, 77, 2048, device=DEVICE, dtype=DTYPE)
    pooled = torch.zeros(1, 1280, device=DEVICE, dtype=DTYPE)
    told = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "num_inference_steps": 4, "guidance_scale": 0.0}
    pipe(**told, height=SIDE, width=SIDE, generator=torch.Generator().manual_seed(0), output_type="latent")


def measure(networks: str) -> dict:
    """Student and hybrid in this process: "two" networks, "two, offloaded", or "one" with a LoRA."""
    pipe = pipeline(unet())
    student = "fast"
    if networks == "one":
        pipe.unet.add_adapter(LoraConfig(r=64, target_modules=list(LORA)), adapter_name=student)
        pipe.unet.to(DTYPE)
    student_s, student_gib = timed(lambda: call(pipe)), peak()
    if networks != "one":
        student = pipe.unet
        if networks == "two, offloaded":
            student.to("cpu")
        pipe.unet = unet()
    with dtviz.hybrid(pipe, student, offload=networks == "two, offloaded") as run:
        hybrid_s = timed(lambda: call(pipe))
    assert run.steps_run == {"base": 1, "distilled": 3}
    return {
        "networks": networks, "where": f"{str(DTYPE).removeprefix('torch.')} on {DEVICE}, {SIDE} px", "student_gib": student_gib,
        "hybrid_gib": peak(), "memory_ratio": peak() / student_gib, "student_s": student_s, "hybrid_s": hybrid_s,
        "time_ratio": hybrid_s / student_s,
    }  # fmt: skip


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    rows = []
    for networks in (
        "two",
        "one",
        *(["two, offloaded"] if DEVICE == "cuda" else []),
    ):  # on a CPU host and device are one
        command = [sys.executable, "-m", "tests.bench.memory", networks]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(said.splitlines()[-1]))
    publish(rows, "memory")


if __name__ == "__main__":
    main()
