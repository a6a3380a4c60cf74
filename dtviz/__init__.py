"""dtviz: record the image a diffusion model predicts at every step, measure sample diversity, and sample hybrids.

pair = dtviz.load("emoji-dmd")
trace = dtviz.generate(pair, "dog face", method="hybrid", seeds=range(8))
images = dtviz.decode(trace, pair)
"""

from importlib import import_module

__version__ = "0.1.0"

# Public name -> module. Imported on first use, so that the command line answers before torch is loaded.
_PUBLIC = {
    "capture": "core.capture", "decode": "core.decode", "decode_steps": "core.decode", "embedder": "metrics.embedders",
    "Estimate": "metrics.statistics", "explore": "explorer.widgets", "fit_preview": "core.decode",
    "generate": "core.generate", "hybrid": "core.hybrid", "load": "models.load", "mean_pairwise": "metrics.diversity",
    "Pair": "core.pair", "pairs": "models.registry", "predict_x0": "core.x0", "schedulers": "core.schedulers",
    "similarity_to_final": "metrics.similarity", "Trace": "core.trace", "Unavailable": "files",
    "vendi": "metrics.diversity",
}  # fmt: skip
_PACKAGES = ("controls", "core", "experiments", "explorer", "files", "metrics", "models", "plot")


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_PACKAGES})
