"""dtviz's measures beside those of other packages, on the same features: writes figures/bench/agreement.csv.

The packages are no dependencies: `pip install --no-deps --target DIR torchmetrics lightning-utilities torch-fidelity pytorch-fid
prdc vendi-score`, then `PYTHONPATH=.:DIR python -m tests.bench.agreement`. Weights are random: what is compared is code.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from dtviz import diversity, quality
from dtviz.embedders import inception

from .measure import publish

TOLERANCE = 1e-5


def row(what: str, package: str, ours: float, theirs: float) -> dict:
    gap = abs(ours - theirs) / max(abs(theirs), 1e-12)
    return {"what": what, "package": f"{package} {version(package)}", "dtviz": ours, "theirs": theirs, "relative": gap}


def measures() -> list[dict]:
    """On 400 and 300 random features of 64 dimensions, correlated, in float64."""
    import prdc
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torchmetrics.image.fid import _compute_fid
    from torchmetrics.image.kid import poly_mmd
    from vendi_score import vendi

    rng = np.random.default_rng(0)
    mix = rng.normal(size=(64, 64)) / 8
    a, b = rng.normal(size=(400, 64)) @ mix, 0.3 + 1.2 * rng.normal(size=(300, 64)) @ mix
    s, t = np.cov(a.T), np.cov(b.T)
    tensors = [torch.from_numpy(x) for x in (a.mean(0), s, b.mean(0), t)]
    near = prdc.compute_prdc(real_features=b, fake_features=a, nearest_k=5)
    equal = [torch.from_numpy(x) for x in (a[:300], b)]  # it takes sets of one size
    own = quality.neighbours(a, b)
    p = rng.dirichlet(np.ones(50) / 5, 400)
    rows = [
        row(
            "FD", "pytorch-fid", quality.frechet_distance(a, b), calculate_frechet_distance(a.mean(0), s, b.mean(0), t)
        ),
        row("FD", "torchmetrics", quality.frechet_distance(a, b), float(_compute_fid(*tensors))),
        row("kernel distance", "torchmetrics", quality.kernel_distance(a[:300], b).value, float(poly_mmd(*equal))),
        *(row(name, "prdc", getattr(own, name), float(near[name])) for name in near),
        row("Inception score", "torchmetrics", quality.inception_score(p, splits=1), torchmetrics_score(p)),
        row("Vendi score, q = 1", "vendi-score", diversity.vendi(a, q=1), float(vendi.score_dual(a, normalize=True))),
    ]
    return rows


def torchmetrics_score(p: np.ndarray) -> float:
    """Its Inception score of given logits; one part, so that its shuffling does not matter."""
    from torchmetrics.image.inception import InceptionScore

    metric = InceptionScore(feature=torch.nn.Identity(), splits=1)
    metric.features = [torch.from_numpy(np.log(p + 1e-300))]
    return float(metric.compute()[0])


def networks() -> list[dict]:
    """Inception-v3 on the same random weights; "relative" is the largest difference over the largest value."""
    from pytorch_fid.inception import InceptionV3
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    model = inception.network()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):  # as wide as it comes in, so that the image is seen at the end
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    state = model.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inception.pth"
        torch.save(state, file)
        ours, classes = inception.load(file, torch.device("cpu"))
        fidelity = FeatureExtractorInceptionV3(
            "ours", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)
        )
        with mock.patch("pytorch_fid.inception.load_state_dict_from_url", lambda *a, **k: state):
            pytorch = InceptionV3([3], resize_input=False).eval()
    images = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        # TensorFlow's graph scales by (x - 128) / 128, pytorch-fid by 2 x / 255 - 1
        found, scaled = ours(2 * (images / 255) - 1), ours((images.float() - 128) / 128)
        theirs = pytorch(images / 255)[0].flatten(1)
        features, logits = fidelity(images)
    gaps = {
        "pytorch-fid": (found, theirs),
        "torch-fidelity": (scaled, features),
    }
    rows = []
    for package, (one, other) in gaps.items():
        told = row("Inception-v3, 2,048 features: their mean", package, float(one.mean()), float(other.mean()))
        rows.append(told | {"relative": float((one - other).abs().max() / other.abs().max())})
    told = row(
        "Inception-v3, logits without bias: their mean",
        "torch-fidelity",
        float((scaled @ classes.T).mean()),
        float(logits.mean()),
    )
    return [*rows, told | {"relative": float((scaled @ classes.T - logits).abs().max() / logits.abs().max())}]


def main() -> None:
    rows = measures() + networks()
    publish(rows, "agreement")
    if far := [one["what"] for one in rows if not one["relative"] < TOLERANCE]:
        raise SystemExit(f"further apart than {TOLERANCE}: {', '.join(far)}")


if __name__ == "__main__":
    main()
