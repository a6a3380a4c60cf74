"""Stage 3: a tiny CLIP on the same drawings: its text half conditions the UNet, its image half is an embedder.

    python data/recipes/clip.py --steps 1200

A small BPE tokenizer is learnt from the captions; drawings of one concept in a batch are all positives for it.
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from common import (
    DEVICE,
    MODELS,
    Checkpoint,
    arguments,
    as_images,
    caption,
    concepts,
    cosine,
    drawings,
    eight_bits,
    record,
    stage,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LENGTH = 16  # tokens a caption
MEAN = STD = [0.5, 0.5, 0.5]


def learn_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """CLIP's lower-case BPE with word ends, its vocabulary learnt from the captions."""
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
    """The untrained model: 64x64 images in 16x16 patches, 128-wide features."""
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": LENGTH, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "projection_dim": 128,
    }  # fmt: skip
    vision = {
        "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 5, "num_attention_heads": 6,
        "image_size": 64, "patch_size": 16, "projection_dim": 128,
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))
    model.set_attn_implementation("eager")  # the fused attention's backward is three times slower on a CPU
    return model


def augment(images: torch.Tensor) -> torch.Tensor:
    """Each image mirrored or not, moved by up to 10% and scaled by up to 15%, on white."""
    n = len(images)
    theta = torch.zeros(n, 2, 3, device=images.device)
    scale = 1 + 0.15 * (2 * torch.rand(n, device=images.device) - 1)
    theta[:, 0, 0] = scale * torch.where(torch.rand(n, device=images.device) < 0.5, -1, 1)
    theta[:, 1, 1] = scale
    theta[:, :, 2] = 0.2 * (torch.rand(n, 2, device=images.device) - 0.5)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return 1 + F.grid_sample(images - 1, grid, align_corners=False)  # zero padding is white here


def embed_images(model: CLIPModel, images: torch.Tensor) -> torch.Tensor:
    """Normalised image features (n, 128)."""
    return F.normalize(model.visual_projection(model.vision_model(images).pooler_output), dim=1)


def embed_texts(model: CLIPModel, tokens: torch.Tensor) -> torch.Tensor:
    """Normalised text features (n, 128)."""
    return F.normalize(model.text_projection(model.text_model(tokens).pooler_output), dim=1)


def loss(model: CLIPModel, images: torch.Tensor, tokens: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric contrastive loss with every pair of the same concept a positive."""
    features = embed_images(model, images).float(), embed_texts(model, tokens).float()
    logits = model.logit_scale.exp().clamp(max=50) * features[0] @ features[1].T
    same = (label[:, None] == label[None]).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def accuracy(model: CLIPModel, images: torch.Tensor, label: torch.Tensor, tokens: torch.Tensor) -> float:
    """Share of images whose nearest caption among all is their own."""
    text = embed_texts(model, tokens)
    nearest = torch.cat([(embed_images(model, batch) @ text.T).argmax(1) for batch in images.split(256)])
    return float((nearest == label).float().mean())


def main() -> None:
    args = arguments(steps=900, batch=224, lr=1e-3)
    data = drawings()
    names = sorted(set(data["concept"]))
    tokenizer = learn_tokenizer([caption(name) for name in names])
    tokens = tokenizer(
        [caption(name) for name in names], padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids.to(DEVICE)
    images = as_images(data["images"])
    label = torch.from_numpy(np.searchsorted(names, data["concept"]))
    seen = torch.from_numpy(np.flatnonzero(~data["held_out"]))

    model = build(tokenizer).to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.1)
    checkpoint = Checkpoint("clip", every=100, model=model, optimizer=optimizer)
    for step in range(checkpoint.resume(), args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * cosine(step, args.steps)
        chosen = seen[torch.randint(len(seen), (args.batch,))]
        batch, which = augment(images[chosen].to(DEVICE)), label[chosen].to(DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            value = loss(model, batch, tokens[which], which)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        checkpoint.save(step + 1, last=step + 1 == args.steps)
        if step % 50 == 0:
            print(step, f"loss {value.item():.4f}", flush=True)

    model.eval()
    with torch.inference_mode():
        chosen = torch.from_numpy(np.isin(data["concept"], concepts()))
        rows = torch.from_numpy(np.searchsorted(names, sorted(concepts())))
        among = torch.searchsorted(rows, label[chosen]).to(DEVICE)
        record(
            "clip",
            steps=args.steps,
            accuracy_all=accuracy(model, images.to(DEVICE), label.to(DEVICE), tokens),
            accuracy_chosen=accuracy(model, images[chosen].to(DEVICE), among, tokens[rows]),
            concepts_all=len(names),
            concepts_chosen=len(rows),
        )
    folder, base = MODELS / "emoji-clip", MODELS / "emoji-base"
    model.save_pretrained(folder)
    CLIPTextModel.from_pretrained(folder).save_pretrained(base / "text_encoder")  # what the UNets are trained on
    tokenizer.save_pretrained(base / "tokenizer")
    eight_bits(folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        do_resize=True, size={"height": 64, "width": 64}, do_center_crop=False, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)


if __name__ == "__main__":
    with stage("clip"):
        main()
