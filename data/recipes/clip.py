"""Stage 3: a tiny CLIP of painted pictures: its text half conditions the UNet, its image half is an embedder.

    python data/recipes/clip.py
    python data/recipes/clip.py --steps 0    # measures the published one

A small BPE tokenizer is learnt from the captions. A caption may fit several pictures of a batch, and a picture several captions:
the positives are all captions that are true of it. The held-out concepts' names are known to the tokenizer alone.
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from common import DEVICE, MODELS, Checkpoint, arguments, concepts, cosine, eight_bits, record, stage
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer
from world import World, caption, sample_factors

from dtviz.metrics.factors import COLOURS, SIZES

FOLDER = MODELS / "emoji-clip"
MENTION = 0.4  # how often a caption says the colour, or the size
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LENGTH = 16  # tokens a caption
MEAN = STD = [0.5, 0.5, 0.5]


def learn_tokenizer(names: list[str]) -> CLIPTokenizer:
    """CLIP's lower-case BPE with word ends, its vocabulary learnt from the captions of these concepts."""
    # Every name once, and words for size and colour as often as in some hundreds of captions
    captions = [caption(name) for name in names] + [
        f"{size} x on {colour}" for size in SIZES for colour in COLOURS
    ] * 40
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=EOS))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=[BOS, EOS],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(captions), trainer)
    learnt = json.loads(bpe.model.__getstate__())
    vocab = learnt["vocab"]
    for byte in pre_tokenizers.ByteLevel.alphabet():  # so that no text is ever unknown
        vocab.setdefault(byte + "</w>", len(vocab))
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in learnt["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained model: 64x64 images in 8x8 patches, 128-wide features."""
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": LENGTH, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "projection_dim": 128,
    }  # fmt: skip
    vision = {
        "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 5, "num_attention_heads": 6,
        "image_size": 64, "patch_size": 8, "projection_dim": 128,
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))
    model.set_attn_implementation("eager")  # the fused attention's backward is three times slower on a CPU
    return model


def embed_images(model: CLIPModel, images: torch.Tensor) -> torch.Tensor:
    """Normalised image features (n, 128)."""
    return F.normalize(model.visual_projection(model.vision_model(images).pooler_output), dim=1)


def embed_texts(model: CLIPModel, tokens: torch.Tensor) -> torch.Tensor:
    """Normalised text features (n, 128)."""
    return F.normalize(model.text_projection(model.text_model(tokens).pooler_output), dim=1)


def loss(model: CLIPModel, images: torch.Tensor, tokens: torch.Tensor, fits: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric contrastive loss. fits: (image, caption), 1 where a caption is true of an image, else 0."""
    features = embed_images(model, images).float(), embed_texts(model, tokens).float()
    logits = model.logit_scale.exp().clamp(max=50) * features[0] @ features[1].T
    pairs = (logits, fits), (logits.T, fits.T)
    return sum(F.cross_entropy(scores, true / true.sum(1, keepdim=True)) for scores, true in pairs) / 2


class Captions:
    """Painted pictures of the drawings in `rows` with a caption for each, `batch` at a time."""

    def __init__(self, world: World, rows: torch.Tensor, batch: int) -> None:
        self.world, self.rows, self.batch, self.generator = world, rows, batch, torch.Generator().manual_seed(0)
        self.label = torch.from_numpy(np.unique(world.concept, return_inverse=True)[1])

    def draw(self) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """Images (n, 3, 64, 64), captions, and which caption is true of which image, (n, n) float."""
        rows = self.rows[torch.randint(len(self.rows), (self.batch,), generator=self.generator)]
        factors = sample_factors(len(rows), generator=self.generator)
        fits, said = self.label[rows][:, None] == self.label[rows], {}
        for name in ("colour", "size"):
            mention = torch.rand(len(rows), generator=self.generator) < MENTION
            said[name] = torch.where(mention, factors[name], -1)
            fits &= (said[name] == -1) | (said[name] == factors[name][:, None])
        texts = map(caption, self.world.concept[rows], said["colour"].tolist(), said["size"].tolist())
        return self.world.paint(rows, factors), list(texts), fits.float()


@torch.inference_mode()
def accuracy(model: CLIPModel, world: World, names: list[str], tokens: torch.Tensor) -> float:
    """Share of painted pictures, one a drawing of these concepts, whose nearest caption among `names` is right."""
    rows, generator = torch.from_numpy(np.isin(world.concept, names).nonzero()[0]), torch.Generator().manual_seed(1)
    text, right = embed_texts(model, tokens), []
    for part in rows.split(256):
        images = world.paint(part, sample_factors(len(part), generator=generator)).to(DEVICE)
        nearest = (embed_images(model, images) @ text.T).argmax(1).tolist()
        right += [names[i] == concept for i, concept in zip(nearest, world.concept[part], strict=True)]
    return float(np.mean(right))


def train(tokenizer: CLIPTokenizer, world: World, args) -> CLIPModel:
    """Train on the drawings of all concepts but the held-out ones, and publish."""
    model, data = (
        build(tokenizer).to(DEVICE).train(),
        Captions(world, torch.from_numpy(~world.held_out).nonzero()[:, 0], args.batch),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.1)
    checkpoint = Checkpoint("clip", every=100, model=model, optimizer=optimizer)
    for step in range(checkpoint.resume(), args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * cosine(step, args.steps)
        images, texts, fits = data.draw()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            value = loss(model, images.to(DEVICE), tokenize(tokenizer, texts), fits.to(DEVICE))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        checkpoint.save(step + 1, last=step + 1 == args.steps)
        if step % 50 == 0:
            print(step, f"loss {value.item():.4f}", flush=True)
    base = MODELS / "emoji-base"
    model.save_pretrained(FOLDER)
    CLIPTextModel.from_pretrained(FOLDER).save_pretrained(base / "text_encoder")  # what the UNets are trained on
    tokenizer.save_pretrained(base / "tokenizer")
    tokenizer.save_pretrained(FOLDER)
    eight_bits(FOLDER / "model.safetensors")
    CLIPImageProcessor(
        do_resize=True, size={"height": 64, "width": 64}, do_center_crop=False, image_mean=MEAN, image_std=STD
    ).save_pretrained(FOLDER)
    return model


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """(n, LENGTH) token numbers."""
    settings = {"padding": "max_length", "max_length": LENGTH, "truncation": True, "return_tensors": "pt"}
    return tokenizer(texts, **settings).input_ids.to(DEVICE)


def main() -> None:
    args = arguments(steps=4000, batch=224, lr=1e-3)
    world = World()
    names = sorted(set(world.concept.tolist()))
    if args.steps:
        tokenizer = learn_tokenizer(names)
        model = train(tokenizer, world, args)
    else:
        tokenizer = CLIPTokenizer.from_pretrained(FOLDER)
        model = CLIPModel.from_pretrained(FOLDER, dtype=torch.float32).to(DEVICE)
    model.eval()
    among = {"all": names, "chosen": concepts(), "held_out": concepts("held_out")}
    right = {
        f"accuracy_{name}": accuracy(model, world, those, tokenize(tokenizer, [caption(one) for one in those]))
        for name, those in among.items()
    }
    counts = {f"concepts_{name}": len(those) for name, those in among.items()}
    record("clip", steps=args.steps, batch=args.batch, **right, **counts)


if __name__ == "__main__":
    with stage("clip"):
        main()
