"""A distilled model as a distillation LoRA on the base, so that one network is both base and distilled model.

Extracted, not trained: the singular value decomposition of (distilled model - base) of every linear and convolution matrix, its
first terms. Biases and norms stay the base's.
"""

import torch


def factors(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The two factors of the nearest matrix of this rank: A (rank, in, ...) and B (out, rank, ...), peft's shapes.

    A convolution's kernel is read as (out, in x height x width); its A is then a convolution to `rank` channels.
    """
    rows = change.flatten(1)
    left, size, right = torch.linalg.svd(rows, full_matrices=False)
    rank = min(rank, len(size))
    root = size[:rank].sqrt()
    down, up = root[:, None] * right[:rank], left[:, :rank] * root
    ones = (1,) * (change.ndim - 2)
    return down.reshape(rank, *change.shape[1:]), up.reshape(*up.shape, *ones)


@torch.no_grad()
def extract(base: torch.nn.Module, student: torch.nn.Module, rank: int) -> tuple[dict[str, torch.Tensor], float]:
    """The adapter's state dict, and the share of the change's squared norm that it keeps."""
    state, whole, left_out = {}, 0.0, 0.0
    after = dict(student.named_parameters())
    for name, before in base.named_parameters():
        change = after[name] - before
        whole += float(change.square().sum())
        if before.ndim < 2:
            left_out += float(change.square().sum())
            continue
        down, up = factors(change, rank)
        layer = name.removesuffix(".weight")
        state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"] = down.contiguous(), up.contiguous()
        left_out += float((change.flatten(1) - up.flatten(1) @ down.flatten(1)).square().sum())
    return state, 1 - left_out / whole
