"""Results on disk, named by the settings that made them: whatever was made once is never made again.

    store = Store()
    arrays = store.fetch("features", {"pair": "emoji-dmd", "seeds": [0, 1]}, make)      # make() -> {"features": array}

One safetensors file a result, `root/<kind>/<key[:2]>/<key>.safetensors`, with its settings inside. It is written beside
its place and renamed, so it is whole or absent; a file that was damaged later is noticed by its hash and made again.
"""

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .places import ROOT


def key(kind: str, settings: Mapping) -> str:
    """Name of a result, 64 hexadecimal digits: sha256 of its kind and settings as canonical JSON.

    settings: None, bool, int, finite float, str, and lists, tuples and str-keyed dicts of these; order of keys does not
    count. Whatever changes the result belongs in it, versions included. ValueError: anything else, naming where it is.

    >>> key("images", {"seed": 1, "steps": 4}) == key("images", {"steps": 4, "seed": 1})
    True
    """
    return hashlib.sha256(f"{_kind(kind)}\n{_canonical(settings)}".encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A result on disk: its kind, its 64-digit name, where it is, its bytes, and the settings that it says it was made by
    (None where its head cannot be read)."""

    kind: str
    name: str
    path: Path
    size: int
    settings: dict | None

    def problem(self) -> str:
        """What is wrong with the file, "" when it is whole and in its place; reads all of it."""
        if self.settings is None:
            return "its head cannot be read"
        try:
            named = key(self.kind, self.settings) == self.name
        except ValueError:  # a folder that is no kind, or settings that name nothing
            named = False
        if not named:
            return "its settings are not those that it is named by"
        return _problem(self.path, self.settings)


class Store:
    """A folder of results. root: None for the environment's DTVIZ_STORE, or `.dtviz` in the repository.

    >>> import tempfile
    >>> store = Store(tempfile.mkdtemp())
    >>> store.fetch("sum", {"to": 3}, lambda: {"sum": np.arange(4).sum()})
    {'sum': array(6)}
    """

    def __init__(self, root: str | Path | None = None):
        default = os.environ.get("DTVIZ_STORE") or ROOT / ".dtviz"
        self.root = Path(default if root is None else root).expanduser()

    def path(self, kind: str, settings: Mapping) -> Path:
        """Where the result is or would be."""
        name = key(kind, settings)
        return self.root / kind / name[:2] / f"{name}.safetensors"

    def has(self, kind: str, settings: Mapping) -> bool:
        """Whether the result is there and whole."""
        return _read(self.path(kind, settings), settings, warn=False) is not None

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """The results that are there, of one kind or of all; only their heads are read."""
        for path in sorted(self.root.glob(f"{'*' if kind is None else _kind(kind)}/??/*.safetensors")):
            try:
                size = path.stat().st_size
                with safe_open(path, framework="np") as file:
                    settings = json.loads((file.metadata() or {})["settings"])
            except FileNotFoundError:  # removed by another process since the folder was listed
                continue
            except _DAMAGE:
                settings = None
            yield Entry(path.parts[-3], path.stem, path, size, settings if isinstance(settings, dict) else None)

    def fetch(self, kind: str, settings: Mapping, make: Callable[[], Mapping]) -> dict[str, np.ndarray]:
        """The result's arrays by name: read if it is there and whole, else made by `make()` and kept.

        make gives a mapping of names to numpy arrays or torch tensors (not bfloat16). Processes that want the same
        result at once wait for the first and read what it made. Warns, naming the file, if it was damaged.
        ValueError: settings or arrays that cannot be kept. What `make` raises passes through, and nothing is left.
        """
        path = self.path(kind, settings)
        arrays = _read(path, settings, warn=False)
        if arrays is not None:
            return arrays
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            arrays = _read(path, settings, warn=True)  # another process may have made it while we waited
            if arrays is None:
                arrays = _arrays(kind, make())
                _write(path, settings, arrays)
        return arrays


def _read(path: Path, settings: Mapping, *, warn: bool) -> dict[str, np.ndarray] | None:
    try:
        return _whole(path, settings)
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        if warn:
            warnings.warn(f"{path} is damaged and is made again: {error}", stacklevel=3)
        return None


def _problem(path: Path, settings: Mapping) -> str:
    try:
        _whole(path, settings)
    except _DAMAGE as error:
        return str(error)
    return ""


_DAMAGE = (SafetensorError, KeyError, TypeError, ValueError, RecursionError)


def _whole(path: Path, settings: Mapping) -> dict[str, np.ndarray]:
    """The arrays of a file that is what it was written as. Raises one of _DAMAGE."""
    with safe_open(path, framework="np") as file:
        found = file.metadata() or {}
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if found.get("sha256") != digest(_canonical(settings), arrays):
        raise ValueError("its contents do not match its hash")
    return arrays


def write_whole(path: Path, data: bytes, *, shared: bool = False) -> None:
    """Write a file that is whole or absent, whatever happens, and leave the earlier one until then.

    Beside its place under one name, so that the rest of a killed writer is overwritten by the next; one process at a time
    may write a path. `shared`: several may, each under a name of its own, and the rest of a killed one stays.
    OSError: the disk is full or may not be written; the file is named.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial" if shared else f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could leave the new name on an empty file
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def _write(path: Path, settings: Mapping, arrays: dict[str, np.ndarray]) -> None:
    text = _canonical(settings)
    write_whole(path, save(arrays, metadata={"settings": text, "sha256": digest(text, arrays)}))


def digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over everything that a reader gets, so that no damaged byte of it goes unnoticed."""
    total = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        total.update(f"\n{name} {arrays[name].dtype.name} {arrays[name].shape}\n".encode())
        total.update(arrays[name].tobytes())
    return total.hexdigest()


def _arrays(kind: str, made: Mapping) -> dict[str, np.ndarray]:
    if not isinstance(made, Mapping) or not made:
        raise ValueError(
            f"make() for {kind!r} gave {type(made).__name__}; needed is a dict of names to arrays, not empty"
        )
    arrays = {}
    for name, value in made.items():
        if str(getattr(value, "dtype", "")) == "torch.bfloat16":
            raise ValueError(f"make() for {kind!r} gave {name!r} as bfloat16, which numpy lacks: add .float()")
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if not isinstance(name, str) or array.dtype.kind not in "biuf":
            raise ValueError(
                f"make() for {kind!r} gave {name!r} of type {array.dtype}; kept are str names of number arrays"
            )
        arrays[name] = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    return arrays


def _canonical(settings: Mapping) -> str:
    _check(settings, "settings")
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


def _check(value, where: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{where} has the key {name!r}; keys must be str, else 1 and '1' would share a result")
            _check(item, f"{where}[{name!r}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check(item, f"{where}[{i}]")
    elif not (
        value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    ):
        raise ValueError(
            f"{where} = {value!r} ({type(value).__name__}) cannot name a result: allowed are None, bool, int, finite "
            "float, str, list, tuple and dict; turn a range, path, array or number of numpy into one of these"
        )


def _kind(kind: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", kind):
        raise ValueError(f"kind = {kind!r} must be a plain folder name: lower case letters, digits, - and _")
    return kind
