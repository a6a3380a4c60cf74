"""Whether this machine has a pair's weights, found out without loading them or waiting for the network."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from .errors import Unavailable
from .specs import LORA, SPECS, spec_of


def models() -> Path:
    """The folder of the embedded models: `$DTVIZ_MODELS`, or `data/models` beside the package."""
    return Path(os.environ.get("DTVIZ_MODELS") or Path(__file__).resolve().parents[1] / "data" / "models")


def missing(name: str) -> str:
    """What a pair lacks on this machine, "" when it can be loaded offline; no network is touched."""
    spec = spec_of(name)
    weights = "diffusion_pytorch_model.safetensors"
    if spec.embedded:
        wanted = [models() / spec.base / "model_index.json", models() / spec.base / "unet" / weights]
        wanted.append(models() / spec.student / spec.file / (LORA if spec.file == "lora" else weights))
        return ", ".join(str(path) for path in wanted if not path.exists())
    from huggingface_hub import try_to_load_from_cache

    student = spec.file if spec.file.endswith(".safetensors") else f"{spec.file}/{weights}".lstrip("/")
    half = f"unet/{weights.replace('.safetensors', '.fp16.safetensors')}"
    wanted = {spec.base: (f"unet/{weights}", half), spec.student: (student, student)}
    gone = [repo for repo, files in wanted.items() if not any(_have(try_to_load_from_cache, repo, f) for f in files)]
    return ", ".join(gone)


def check(name: str) -> None:
    """Refuse a pair that `load` could not load, before any slow work.

    Raises:
        ValueError: no pair has this name.
        Unavailable: its weights are not here and the hub cannot be reached (asked for two seconds at most).
    """
    gone = missing(name)
    if not gone:
        return
    if spec_of(name).embedded:
        raise Unavailable(f"pair {name!r} lacks {gone}: restore it from the repository, or run `make models`")
    if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True") or not hub_answers():
        raise Unavailable(
            f"pair {name!r} is not on this machine (missing: {gone}) and the model hub is out of reach. "
            f"Download it where there is a network (`hf download {gone.split(', ')[0]}`), set HF_HOME to that cache, "
            f"or use an embedded pair: {', '.join(n for n, s in SPECS.items() if s.embedded)}"
        )


def _have(cached: Any, repo: str, file: str) -> bool:
    return (Path(repo) / file).is_file() or isinstance(cached(repo, file), str)


def hub_answers(seconds: float = 2.0) -> bool:
    """Whether the hub, or the proxy to it, takes a connection; a dead resolver may not hold us up either."""
    asked = getproxies().get("https") or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    where = urlsplit(asked if "//" in asked else f"//{asked}")
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((where.hostname, where.port or 443), timeout=seconds).close()
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
