"""dtviz's measures beside those of other packages, on the same features: writes figures/bench/agreement.csv.

Two packages are no dependencies: `pip install --no-deps --target DIR pytorch-fid vendi-score`, then
`PYTHONPATH=.:DIR python -m tests.bench.agreement`.
"""

from importlib.metadata import version

import numpy as np
import torch

from dtviz.metrics import diversity, quality

from .measure import publish

TOLERANCE = 1e-5


def row(what: str, package: str, ours: float, theirs: float) -> dict:
    gap = abs(ours - theirs) / max(abs(theirs), 1e-12)
    return {"what": what, "package": f"{package} {version(package)}", "dtviz": ours, "theirs": theirs, "relative": gap}


def measures() -> list[dict]:
    """On 400 and 300 random features of 64 dimensions, correlated, in float64."""
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torchmetrics.image.fid import _compute_fid
    from torchmetrics.image.inception import InceptionScore
    from vendi_score import vendi

    rng = np.random.default_rng(0)
    mix = rng.normal(size=(64, 64)) / 8
    a, b = rng.normal(size=(400, 64)) @ mix, 0.3 + 1.2 * rng.normal(size=(300, 64)) @ mix
    moments = a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T)
    p = rng.dirichlet(np.ones(50) / 5, 400)
    distance, tensors = quality.frechet_distance(a, b), [torch.from_numpy(x) for x in moments]
    score = InceptionScore(feature=torch.nn.Identity(), splits=1)  # one part, so that its shuffling does not matter
    score.features = [torch.from_numpy(np.log(p + 1e-300))]
    return [
        row("FD", "pytorch-fid", distance, calculate_frechet_distance(*moments)),
        row("FD", "torchmetrics", distance, float(_compute_fid(*tensors))),
        row("Inception score", "torchmetrics", quality.inception_score(p, splits=1), float(score.compute()[0])),
        row("Vendi score, q = 1", "vendi-score", diversity.vendi(a, q=1), float(vendi.score_dual(a, normalize=True))),
    ]


def main() -> None:
    rows = measures()
    publish(rows, "agreement")
    if far := [one["what"] for one in rows if not one["relative"] < TOLERANCE]:
        raise SystemExit(f"further apart than {TOLERANCE}: {', '.join(far)}")


if __name__ == "__main__":
    main()
