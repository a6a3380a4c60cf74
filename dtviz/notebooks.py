"""Which notebooks there are, which of them are meant by a name, and whether parameters fit them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .places import ROOT

_TYPES = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}


@dataclass(frozen=True)
class Notebook:
    """A notebook that can be run, and its parameters: name -> declared type ("int", "str", ..., or "None")."""

    path: Path
    parameters: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.path.stem


def notebooks(*, folder: str | Path | None = None) -> list[Notebook]:
    """The notebooks of `folder` (default: the checkout's `notebooks/`) with a cell tagged `parameters`, by name.

    Raises FileNotFoundError when there is no such folder.

        [notebook.name for notebook in notebooks()]
    """
    return [found for path in paths(folder).values() if (found := _read(path)) is not None]


def paths(folder: str | Path | None) -> dict[str, Path]:
    """Name -> path of every notebook in `folder`, by name; None: the checkout's `notebooks/`.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = ROOT / "notebooks" if folder is None else Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no notebooks folder at {folder}: the notebooks are in a checkout of dtviz")
    return {path.stem: path for path in sorted(folder.glob("*.ipynb"))}


def choose(names: Iterable[str] | None, among: Mapping[str, Path]) -> list[Notebook]:
    """The notebooks of these names, or short names up to the first underscore, each once; None: all with parameters.

    Raises:
        ValueError: an unknown or ambiguous name, no name, or a notebook without a cell tagged `parameters`.
    """
    if names is None:
        chosen = [found for path in among.values() if (found := _read(path)) is not None]
        if not chosen:
            raise ValueError(f"no notebook with a cell tagged 'parameters' among {sorted(among) or 'no notebooks'}")
        return chosen
    if isinstance(names, str):
        raise ValueError(f"names={names!r} is one string: pass a list, [{names!r}]")
    resolved = list(dict.fromkeys(_resolve(name, among) for name in names))
    if not resolved:
        raise ValueError("names is empty: name a notebook, or pass None for all of them")
    chosen = []
    for path in resolved:
        notebook = _read(path)
        if notebook is None:
            raise ValueError(f"notebook {path.stem} has no cell tagged 'parameters': tag the cell that sets them")
        chosen.append(notebook)
    return chosen


def check_parameters(notebook: Notebook, values: Mapping[str, object]) -> None:
    """Refuse, with a ValueError, parameters that the notebook lacks or declares with another type."""
    allowed = notebook.parameters
    for name, value in values.items():
        if name not in allowed:
            raise ValueError(
                f"notebook {notebook.name} has no parameter {name!r}{_hint(name, allowed)}; "
                f"it has: {', '.join(allowed) or 'none'}"
            )
        types = _TYPES.get(allowed[name])
        # bool is a subclass of int, but True is no number of seeds
        if types and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise ValueError(
                f"parameter {name!r} of notebook {notebook.name} is of type {allowed[name]}, "
                f"got {value!r} ({type(value).__name__})"
            )


def _read(path: Path) -> Notebook | None:
    """The notebook at `path`; None when no cell of it is tagged `parameters`."""
    import nbformat
    from papermill.translators import PythonTranslator

    cells = nbformat.read(path, as_version=4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        return None
    return Notebook(path, {p.name: p.inferred_type_name for p in PythonTranslator.inspect(tagged[0])})


def _resolve(name: str, among: Mapping[str, Path]) -> Path:
    if name in among:
        return among[name]
    matches = [stem for stem in among if stem.split("_")[0] == name]
    if len(matches) == 1:
        return among[matches[0]]
    if matches:
        raise ValueError(f"notebook {name!r} may be any of {', '.join(matches)}: give the whole name")
    hint = _hint(name, [*among, *(stem.split("_")[0] for stem in among)])
    raise ValueError(f"there is no notebook {name!r}{hint}; there are: {', '.join(among) or 'none'}")


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
