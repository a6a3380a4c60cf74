"""Whether this machine has a pair's weights, found out without loading them or waiting for the network."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from ..errors import Unavailable
from ..places import data
from .families import FAMILIES
from .hub import LORA
from .spec import Spec
from .specs import SPECS, repo_of, spec_of

_NETWORK = "diffusion_pytorch_model"
_WHOLE = ".safetensors", ".safetensors.index.json"  # in one file, or an index of several


def models() -> Path:
    """The folder of the embedded models: `$DTVIZ_MODELS`, or `data/models` beside the package."""
    return data("models")


def found(repo: str, file: str, *, revision: str | None = None) -> Path | None:
    """Where a file of a folder, or of a repository in the hub's cache, is on this machine; None: it is not."""
    from huggingface_hub import try_to_load_from_cache

    local = Path(repo) / file
    if local.is_file():
        return local
    if Path(repo).is_dir():
        return None
    cached = try_to_load_from_cache(repo, file, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def lacking(name: str, *, revisions: tuple[str | None, str | None] = (None, None)) -> dict[str, list[str]]:
    """Of each repository, the files that `load` needs and this machine has not; of folders with weights, one file of them.

    `revisions`: commits of the base's and the student's repository; None takes those that dtviz knows.
    """
    spec = spec_of(name)
    if spec.embedded:
        folders = [models() / spec.base, models() / spec.base / "unet", models() / spec.student / spec.file]
        files = ["model_index.json", f"{_NETWORK}.safetensors", LORA if spec.adapter else f"{_NETWORK}.safetensors"]
        gone = [str(folder / file) for folder, file in zip(folders, files, strict=True) if not (folder / file).exists()]
        return {"data/models": gone} if gone else {}
    base, student = revisions[0] or repo_of(spec.base).revision, revisions[1] or repo_of(spec.student).revision
    gone = {spec.base: _absent(spec.base, base, _of_base(spec, base))}
    gone[spec.student] = _absent(spec.student, student, [_of_student(spec)])
    return {repo: files for repo, files in gone.items() if files}


def _absent(repo: str, revision: str | None, wanted: list[list[str]]) -> list[str]:
    """Of files that are wanted, each with those that do as well, the first of those of which none is here."""
    return [same[0] for same in wanted if not any(found(repo, file, revision=revision) for file in same)]


def _of_student(spec: Spec) -> list[str]:
    if "." in spec.file:
        return [spec.file, str(Path(spec.file).with_suffix(".bin"))]
    return _weights(spec.file, _NETWORK)


def _of_base(spec: Spec, revision: str | None) -> list[list[str]]:
    """The files of the base's pipeline, each with those that do as well; what folders it has, its own index says."""
    index = found(spec.base, "model_index.json", revision=revision)
    parts = [FAMILIES[spec.family].folder, "vae", "text_encoder"]
    if index is not None:
        told = json.loads(index.read_text())
        parts = [part for part, of in told.items() if isinstance(of, list) and of[0] is not None]
    weights = {part: "model" if part.startswith("text_encoder") else _NETWORK for part in parts}
    networks = [part for part in parts if part in ("unet", "transformer", "vae") or part.startswith("text_encoder")]
    return [["model_index.json"], *(_weights(part, weights[part]) for part in networks)]


def _weights(folder: str, stem: str) -> list[str]:
    """What may hold a network's weights in a folder: with or without a variant, in one file or several."""
    return [f"{folder}/{stem}{half}{end}".lstrip("/") for half in ("", ".fp16") for end in _WHOLE] + [
        f"{folder}/{stem}.safetensors.index.fp16.json".lstrip("/")
    ]


def missing(name: str, *, revisions: tuple[str | None, str | None] = (None, None)) -> str:
    """What a pair lacks on this machine, "" when it can be loaded offline; no network is touched."""
    gone = lacking(name, revisions=revisions)
    return ", ".join(gone.get("data/models", gone))


def check(name: str, *, revisions: tuple[str | None, str | None] = (None, None)) -> None:
    """Refuse a pair that `load` could not load, before any slow work; `revisions` as for `lacking`.

    Raises:
        ValueError: no pair has this name.
        Unavailable: its weights are not here and the hub cannot be reached (asked for two seconds at most).
    """
    gone = missing(name, revisions=revisions)
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
