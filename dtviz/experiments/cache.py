"""Cache results on disk, named by the settings that produced them.

arrays = Cache().get_or_compute("features", {"pair": "emoji-dmd", "seeds": [0, 1]}, compute)  # compute() -> {"x": array}
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors.numpy import save

from ..files import HOME, content_hash, read_safetensors, write_atomic


class Cache:
    """Keep results in a folder, a safetensors file with the settings and a hash for each.

    `root=None` takes the environment variable DTVIZ_STORE, or `.dtviz` in the checkout.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or os.environ.get("DTVIZ_STORE") or HOME / ".dtviz").expanduser()

    def path(self, kind: str, settings: Mapping[str, Any]) -> Path:
        """Return the file of a result: its kind is a folder's name, its settings are what JSON can hold, in any order."""
        name = hashlib.sha256(f"{kind}\n{_canonical(settings)}".encode()).hexdigest()
        return self.root / kind / name[:2] / f"{name}.safetensors"

    def get_or_compute(self, kind: str, settings: Mapping, compute: Callable[[], Mapping]) -> dict[str, np.ndarray]:
        """Return the arrays of a result. Compute and keep them if they are not in the cache, or damaged.

        Everything that changes the result belongs in the settings. `compute` returns numpy arrays or torch tensors by name.
        """
        path = self.path(kind, settings)
        if (arrays := _read(path, settings)) is not None:
            return arrays
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # processes that need the same result wait for the first
            if (arrays := _read(path, settings, warn=True)) is None:  # another process may have written it meanwhile
                arrays, text = {name: _as_numpy(value) for name, value in compute().items()}, _canonical(settings)
                write_atomic(path, save(arrays, metadata={"settings": text, "sha256": content_hash(text, arrays)}))
        return arrays


def _read(path: Path, settings: Mapping[str, Any], *, warn: bool = False) -> dict[str, np.ndarray] | None:
    """Return the arrays of a file. None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        arrays, metadata = read_safetensors(path)
        if metadata.get("sha256") == content_hash(_canonical(settings), arrays):
            return arrays
        problem = f"{path} does not match its hash"
    except ValueError as error:
        problem = str(error)
    if warn:
        warnings.warn(f"{problem}; it is computed again", stacklevel=3)
    return None


def _as_numpy(value: Any) -> np.ndarray:
    """Return an array of this machine's byte order, row by row, as safetensors needs it."""
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    return array.astype(array.dtype.newbyteorder("="), order="C", copy=False)


def _canonical(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
