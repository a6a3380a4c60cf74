"""Files from outside: whatever is wrong with one is a single error, of one line, that names it.

    with reading("dog.trace"):
        header = json.loads(text)       # ValueError: dog.trace cannot be read, is it damaged? JSONDecodeError: ...

And the sha256 of files that are known: a model with one flipped bit draws other images, and nothing else would say so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"  # in the form of `sha256sum`, so that `sha256sum --check` reads it too
SUMMED = (".safetensors", ".json")  # what decides what a model does


@contextmanager
def reading(what: object) -> Iterator[None]:
    """What a reader makes of the bytes of `what`, inside the block, becomes a ValueError of one line that names it.

    A file that the system cannot give (missing, no permission) is its own OSError, and want of memory is no damage.

    >>> with reading("numbers.json"):
    ...     int("one")
    Traceback (most recent call last):
    ValueError: numbers.json cannot be read, is it damaged? ValueError: invalid literal for int() with base 10: 'one'
    """
    try:
        yield
    except (
        Exception
    ) as error:  # of any kind: the readers are other people's, and their errors no part of what they promise
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise ValueError(f"{what} cannot be read, is it damaged? {told(error)}") from error


def told(error: Exception) -> str:
    """An error of other people's code in one line of at most 300 letters."""
    line = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return line if len(line) <= 300 else f"{line[:297]}..."


def numbers_of(path: Path) -> Any:
    """What a pickle of torch holds, as weights only.

    Raises:
        ValueError: it cannot be read so, or holds more than numbers; nothing in it is run.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch's own text says how to run what is in it
        raise ValueError(
            f"{path} cannot be read as weights only; nothing in it was run ({type(error).__name__})"
        ) from error


def digests(root: Path, folders: list[str]) -> dict[str, str]:
    """sha256 of the weights and settings in these folders of `root`, by their paths in it, in order.

    Raises:
        ValueError: a file is not, or no longer, what `root/SHA256SUMS` says, where there is one.
    """
    paths = sorted(path for folder in folders for path in (root / folder).rglob("*") if path.suffix in SUMMED)
    found = {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    sums = root / SUMS
    if sums.exists():
        with reading(sums):
            said = {name: digest for digest, name in (line.split("  ", 1) for line in sums.read_text().splitlines())}
        known = {name: digest for name, digest in said.items() if any(name.startswith(f"{f}/") for f in folders)}
        if wrong := sorted(name for name in known if found.get(name) != known[name]):
            raise ValueError(
                f"{', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''} in {root}: missing or damaged, by the {SUMS} "
                "there; restore from the repository what was not trained anew, whose recipe writes new sums"
            )
    return found


def seal(root: Path) -> None:
    """Write `root/SHA256SUMS` for what is there now."""
    (root / SUMS).unlink(missing_ok=True)
    found = digests(root, ["."])
    (root / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in found.items()))
