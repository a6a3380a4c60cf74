"""The base of the next testbed: it composes drawings with backgrounds, sizes and places instead of remembering pictures.

    python data/recipes/world.py && python data/recipes/world_base.py --steps 6000

Fine-tunes the UNet of `data/recipes/world`, a whole diffusers pipeline, on painted pictures (`world.py`) of the concepts in
`CONCEPTS`. The weights there have since had 10,000 steps on 60 of these by a later recipe, see the card. Captions mention
colour and size in 30% of the pictures each, and are dropped one time in ten.
"""

import copy

import numpy as np
import torch
from base import draw, for_training, loss
from common import DEVICE, WORK, Checkpoint, alphas_cumprod, arguments, contact_sheet, cosine, follow, record, stage
from diffusers import StableDiffusionPipeline
from world import COLOURS, SIZES, World, caption, sample_factors

from dtviz.experiments.paper import EMOJI_PROMPTS

PIPELINE = WORK.parent / "world"
MORE = (
    "man", "baby", "girl", "grinning-face", "angry-face", "loudly-crying-face", "smiling-face-with-sunglasses", "green-apple",
    "red-apple", "tomato", "pear", "fox", "panda", "koala", "lion", "cow-face", "owl", "snail", "crab", "christmas-tree",
    "sunflower", "rose", "banana", "pineapple", "carrot", "doughnut", "ice-cream", "balloon", "soccer-ball", "bell", "key",
    "gem-stone", "camera", "light-bulb", "airplane", "automobile", "sailboat", "trophy", "robot", "alien", "jack-o-lantern",
    "snowman", "castle", "star",
)  # fmt: skip
CONCEPTS = tuple(prompt.replace(" ", "-") for prompt in EMOJI_PROMPTS) + MORE
EACH = 48  # paintings of each drawing


class Bank:
    """Latents of painted drawings with their factors, and the text states of all captions."""

    @torch.inference_mode()
    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        world, generator, parts = World(), torch.Generator().manual_seed(0), []
        rows = torch.from_numpy(np.isin(world.concept, CONCEPTS).nonzero()[0])
        labels = torch.tensor([CONCEPTS.index(world.concept[row]) for row in rows])
        for some, label in [(rows[i::16], labels[i::16]) for i in range(16)] * EACH:
            factors = sample_factors(len(some), generator=generator)
            latents = pipe.vae.encode(world.paint(some, factors).to(DEVICE)).latent_dist.mean
            parts.append((latents, label, factors["colour"], factors["large"]))
        self.latents, *facts = (torch.cat(part).to(DEVICE) for part in zip(*parts, strict=True))
        self.label, self.colour, self.large = facts
        mentions = [(colour, large) for colour in range(-1, len(COLOURS)) for large in range(-1, len(SIZES))]
        self.per_concept = len(mentions)
        captions = [caption(name, *mention) for name in CONCEPTS for mention in mentions] + [""]
        tokens = pipe.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(
            DEVICE
        )
        self.text = torch.cat([pipe.text_encoder(part)[0] for part in tokens.split(256)]).clone()

    def batch(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents and text states of `n` random pictures."""
        rows = torch.randint(len(self.latents), (n,), device=DEVICE)
        colour, large = (
            torch.where(torch.rand(n, device=DEVICE) < 0.3, fact[rows], -1) for fact in (self.colour, self.large)
        )
        index = self.label[rows] * self.per_concept + (colour + 1) * (len(SIZES) + 1) + large + 1
        index = index.masked_fill(torch.rand(n, device=DEVICE) < 0.1, len(self.text) - 1)
        return self.latents[rows], self.text[index]


def main() -> None:
    args = arguments(steps=6000, batch=64, lr=5e-4, ema=0.998)
    pipe = StableDiffusionPipeline.from_pretrained(PIPELINE, dtype=torch.float32).to(DEVICE)
    bank, alpha, unet = Bank(pipe), alphas_cumprod().float().to(DEVICE), for_training(pipe.unet).train()
    average = copy.deepcopy(unet).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    checkpoint, running = Checkpoint("world", unet=unet, average=average, optimizer=optimizer), None
    for step in range(checkpoint.resume(), args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * cosine(step, args.steps)
        value = loss(unet, *bank.batch(args.batch), alpha)
        value.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        follow(average, unet, min(args.ema, (step + 1) / (step + 10)))
        running = value.item() if running is None else 0.99 * running + 0.01 * value.item()
        checkpoint.save(step + 1, last=step + 1 == args.steps)
        if step % 100 == 0:
            print(step, f"loss {running:.4f}", flush=True)
    record("world", steps=args.steps, loss=running)
    average.set_default_attn_processor()
    pipe.unet = average.to(memory_format=torch.contiguous_format)
    pipe.set_progress_bar_config(disable=True)
    contact_sheet(2 * draw(pipe, [caption(name) for name in CONCEPTS], 8) - 1, 16, PIPELINE / "samples.jpg")
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.half()  # half the bytes in the repository
    pipe.save_pretrained(PIPELINE)


if __name__ == "__main__":
    with stage("world_base"):
        main()
