"""dtviz: see what a diffusion model plans, why its distilled student loses diversity, and how to get it back.

pair = dtviz.load("emoji-dmd")
trace = dtviz.generate(pair, "dog face", method="hybrid", seeds=range(8))
images = dtviz.decode(trace, pair)
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .adaptive import Adaptive as Adaptive
    from .capture import capture as capture
    from .curves import similarity_to_final as similarity_to_final
    from .decode import decode as decode
    from .decode import decode_steps as decode_steps
    from .decode import fit_preview as fit_preview
    from .diversity import Estimate as Estimate
    from .diversity import mean_pairwise as mean_pairwise
    from .diversity import vendi as vendi
    from .embed import embedder as embedder
    from .errors import Unavailable as Unavailable
    from .explorer import explore as explore
    from .generate import generate as generate
    from .hybrid import hybrid as hybrid
    from .pairs import Pair as Pair
    from .pairs import load as load
    from .pairs import table as pairs
    from .schedule import predict_x0 as predict_x0
    from .schedule import schedulers as schedulers
    from .trace import Trace as Trace

__version__ = "0.1.0"

# Public name: (module, name there). Imported on first use, so that the command line answers before torch is loaded.
_PUBLIC = {
    "Adaptive": ("adaptive", "Adaptive"),
    "capture": ("capture", "capture"),
    "similarity_to_final": ("curves", "similarity_to_final"),
    "decode": ("decode", "decode"),
    "decode_steps": ("decode", "decode_steps"),
    "fit_preview": ("decode", "fit_preview"),
    "Estimate": ("diversity", "Estimate"),
    "mean_pairwise": ("diversity", "mean_pairwise"),
    "vendi": ("diversity", "vendi"),
    "embedder": ("embed", "embedder"),
    "generate": ("generate", "generate"),
    "hybrid": ("hybrid", "hybrid"),
    "Pair": ("pairs", "Pair"),
    "Unavailable": ("errors", "Unavailable"),
    "explore": ("explorer", "explore"),
    "load": ("pairs", "load"),
    "pairs": ("pairs", "table"),
    "predict_x0": ("schedule", "predict_x0"),
    "schedulers": ("schedule", "schedulers"),
    "Trace": ("trace", "Trace"),
}


def _public(module: str, name: str) -> property:
    def get(package: ModuleType):
        return getattr(import_module(f".{module}", package.__name__), name)

    def keep(package: ModuleType, value) -> None:
        if not isinstance(value, ModuleType):  # the import system puts a module of the same name here
            raise AttributeError(f"dtviz.{name} cannot be replaced; replace {module}.{name}")

    return property(get, keep)


class _Package(ModuleType):
    """`dtviz.capture` is the function, also after the module `dtviz.capture` was imported: properties come first."""

    vars().update({public: _public(*where) for public, where in _PUBLIC.items()})

    def __getattr__(self, name: str) -> ModuleType:
        """Modules without a public name of their own: `dtviz.plot`."""
        if not name.startswith("_") and find_spec(f"{self.__name__}.{name}"):
            return import_module(f".{name}", self.__name__)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_PUBLIC})


sys.modules[__name__].__class__ = _Package
