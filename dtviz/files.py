"""Files: where dtviz keeps its own, atomic writes, hashes, and one-line errors for damaged input."""

import contextlib
import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]  # of the checkout; an installed package has no `notebooks` there
HOME = ROOT if (ROOT / "notebooks").is_dir() else Path.cwd()  # folder of the figures and the cache
HASHES = "SHA256SUMS"  # in the format of `sha256sum`, so that `sha256sum --check` reads it too
HASHED = (".safetensors", ".json")  # the files that decide what a model computes

T = TypeVar("T")


class Unavailable(FileNotFoundError):
    """A pair, embedder or control is not on this machine. The message says how to get it.

    with contextlib.suppress(dtviz.Unavailable):
        pair = dtviz.load("sdxl-dmd")
    """


def data(name: str, *, missing_ok: bool = False) -> Path:
    """Return the folder `data/<name>` of the checkout, or the folder that `$DTVIZ_<NAME>` names."""
    variable, folder = f"DTVIZ_{name.upper()}", ROOT / "data" / name
    if variable not in os.environ and not missing_ok and not folder.is_dir():
        raise Unavailable(f"the folder data/{name} is part of a checkout of dtviz: set {variable} to where you have it")
    return Path(os.environ.get(variable) or folder)


@contextlib.contextmanager
def reading(what: object) -> Iterator[None]:
    """Turn any error of a parser inside the block into a one-line ValueError that names `what`."""
    try:
        yield
    except Exception as error:  # parsers of other packages document no common error type
        # a missing file, no permission and no memory are no damage
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise ValueError(f"{what} cannot be read, is it damaged? {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an error's type and message on one line of at most 300 characters."""
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return line if len(line) <= 300 else f"{line[:297]}..."


def load_weights_only(path: Path) -> Any:
    """Return the tensors of a torch pickle. No code in it is run: other content is a ValueError."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # without torch's own message, which says how to run the code
        kind = type(error).__name__
        raise ValueError(f"{path} cannot be read as weights only; nothing in it was run ({kind})") from error


def read_safetensors(path: Path, framework: str = "numpy") -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors of a safetensors file by name, and its metadata. ValueError: it is damaged."""
    from safetensors import safe_open

    with reading(path), safe_open(path, framework=framework) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict


def local_snapshot(repo: str, revision: str | None = None) -> Path | None:
    """Return the folder of a repository in the hub's cache. None: it is not there, or this is no name of one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def hub_reachable(seconds: float = 4.0) -> bool:
    """Return whether the model hub answers, through the proxy if there is one. `HF_HUB_OFFLINE=1` means no."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answers = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # of the client's own library; a proxy may accept and then refuse
            answers.append(get_session().head(constants.ENDPOINT, timeout=seconds))

    # in a thread, because the timeout does not cover the name lookup
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)


def check_hashes(root: Path, folders: list[str]) -> dict[str, str]:
    """Return the sha256 of each weight and settings file in `folders` of `root`, by relative path, sorted.

    A file that is missing or differs from what `root/SHA256SUMS` lists is a ValueError.
    """
    paths = sorted(path for folder in folders for path in (root / folder).rglob("*") if path.suffix in HASHED)
    hashes = {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    listing = root / HASHES
    if listing.exists():
        with reading(listing):
            lines = [line.split("  ", 1) for line in listing.read_text().splitlines()]
            expected = {name: digest for digest, name in lines if any(name.startswith(f"{f}/") for f in folders)}
        if wrong := sorted(name for name in expected if hashes.get(name) != expected[name]):
            names = f"{', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''} in {root}"
            cure = "restore the file from the repository, or run the recipe that trains it"
            raise ValueError(f"{names}: missing or damaged, according to {HASHES} there; {cure}")
    return hashes


def write_atomic(path: Path, data: bytes, *, shared: bool = False) -> None:
    """Write a file completely or not at all. With `shared`, several processes may write `path` at once."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial" if shared else f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # without it a power cut could leave the new name on an empty file
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def content_hash(text: str, arrays: Mapping[str, Any]) -> str:
    """Return the sha256 of a text and named numpy arrays: names, types, shapes and bytes."""
    total = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        total.update(f"\n{name} {arrays[name].dtype.name} {arrays[name].shape}\n".encode())
        total.update(arrays[name].tobytes())
    return total.hexdigest()


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide the progress bars of diffusers and transformers inside the block."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    with contextlib.ExitStack() as stack:
        for logging in (diffusers_logging, transformers_logging):
            if logging.is_progress_bar_enabled():
                logging.disable_progress_bar()
                stack.callback(logging.enable_progress_bar)
        yield


def in_batches(work: Callable[[slice], T], *, n: int, size: int, fixed: bool = False) -> Iterator[tuple[slice, T]]:
    """Call `work(rows)` for slices of at most `size` of `n` rows, and yield each slice with its result.

    On out-of-memory, halve the batch size for the rest of the run and warn once, unless it is `fixed`.
    """
    # imported here and not in the handler below, where no memory may be left for it
    from accelerate.utils.memory import should_reduce_batch_size

    start, requested = 0, size
    while start < n:
        rows = slice(start, min(start + size, n))
        try:
            result = work(rows)
        except (RuntimeError, MemoryError) as error:
            size = (rows.stop - start) // 2
            if fixed or size == 0 or not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
            continue  # drops the error, whose frames hold the batch that did not fit
        if size < requested:
            warnings.warn(f"batch_size={requested} does not fit into memory: using batch_size={size}", stacklevel=3)
            requested = size
        start = rows.stop
        yield rows, result
