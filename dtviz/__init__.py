"""dtviz: record the image a diffusion model predicts at every step, measure sample diversity, and sample hybrids.

pair = dtviz.load("emoji-dmd")
trace = dtviz.generate(pair, "dog face", method="hybrid", seeds=range(8))
images = dtviz.decode(trace, pair)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .core.capture import capture as capture
    from .core.decode import decode as decode
    from .core.decode import decode_steps as decode_steps
    from .core.decode import fit_preview as fit_preview
    from .core.generate import generate as generate
    from .core.hybrid import hybrid as hybrid
    from .core.pair import Pair as Pair
    from .core.schedulers import schedulers as schedulers
    from .core.trace import Trace as Trace
    from .core.x0 import predict_x0 as predict_x0
    from .explorer.widgets import explore as explore
    from .files import Unavailable as Unavailable
    from .metrics.diversity import mean_pairwise as mean_pairwise
    from .metrics.diversity import vendi as vendi
    from .metrics.embedders import embedder as embedder
    from .metrics.similarity import similarity_to_final as similarity_to_final
    from .metrics.statistics import Estimate as Estimate
    from .models.load import load as load
    from .models.registry import pairs as pairs

__version__ = "0.1.0"

# Public name -> module. Imported on first use, so that the command line answers before torch is loaded.
_PUBLIC = {
    "capture": "core.capture",
    "decode": "core.decode",
    "decode_steps": "core.decode",
    "embedder": "metrics.embedders",
    "Estimate": "metrics.statistics",
    "explore": "explorer.widgets",
    "fit_preview": "core.decode",
    "generate": "core.generate",
    "hybrid": "core.hybrid",
    "load": "models.load",
    "mean_pairwise": "metrics.diversity",
    "Pair": "core.pair",
    "pairs": "models.registry",
    "predict_x0": "core.x0",
    "schedulers": "core.schedulers",
    "similarity_to_final": "metrics.similarity",
    "Trace": "core.trace",
    "Unavailable": "files",
    "vendi": "metrics.diversity",
}
_PACKAGES = ("controls", "core", "experiments", "explorer", "files", "metrics", "models", "plot")


def __getattr__(name: str):
    if name in _PUBLIC:
        try:
            return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
        except ModuleNotFoundError as error:
            raise ImportError(f"dtviz.{name} needs {error.name}, which the extra dtviz[notebooks] installs") from error
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_PACKAGES})
