"""Controls with the prompts they are tried on and what judges them: the rows of Table 1.

for case in cases.load("emoji-dmd"):
    study = Study.open("emoji-dmd", seeds=range(10), embedder_name=case.embedder)
    for prompt in case.prompts:
        case.score(prompt, study.features(prompt, "distilled", controls=[case.control.at(case.scale)]))     # (seed,)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .control_files import load as load_control
from .control_files import shipped
from .controls import Control
from .embed import embedder
from .specs import spec_of

STUDENTS = {"dmd": "DMD", "lcm": "LCM", "turbo": "Turbo", "lightning": "Lightning"}  # the paper's four, in its order
CLIP = "clip:openai/clip-vit-large-patch14"  # of hub pairs
COLUMNS = ("control", "file", "prompt", "towards", "scale")


@dataclass(frozen=True)
class Case:
    """A control, what it is tried on, and the direction in which an image should move.

    Attributes:
        control: what is put on.
        prompts: those that it is tried on.
        embedder: the name of the embedder whose features are judged.
        targets: (prompt, d), of length 1: what each prompt's images should come nearer to.
        measure: what the score is called, such as "emoji-clip score".
        scale: at which it is tried.
    """

    control: Control
    prompts: tuple[str, ...]
    embedder: str
    targets: np.ndarray
    measure: str
    scale: float = 1.0

    def score(self, prompt: str, features: np.ndarray) -> np.ndarray:
        """100 times the cosine of each image's features (n, d), of length 1, with the prompt's target, (n,).

        ValueError: the control is not tried on this prompt.
        """
        if prompt not in self.prompts:
            raise ValueError(f"prompt={prompt!r} is none of {self.control.name}'s: {', '.join(self.prompts)}")
        return 100 * features @ self.targets[self.prompts.index(prompt)]

    def facts(self) -> dict[str, Any]:
        """What a figure has to tell about it, JSON-compatible."""
        told = {"name": self.control.name, "kind": self.control.kind, "fingerprint": self.control.fingerprint}
        return told | {
            "facts": dict(self.control.facts),
            "prompts": list(self.prompts),
            "measure": self.measure,
            "scale": self.scale,
        }


def load(pair: str, *, file: str | Path = "", trained_on: str = "base") -> list[Case]:
    """What is tried on a pair, and on the others of its base.

    Args:
        pair: a name in `dtviz.pairs()`.
        file: a CSV of one's own, one row a control and prompt: `control`, its name; `file`, beside the CSV, or in a repository of the
            hub ("owner/name", "owner/name/age.safetensors"); `prompt`; `towards`, the text that the image should come nearer to;
            `scale`. "" takes the controls that dtviz ships for the embedded pairs.
        trained_on: of those shipped, the ones that were trained on the "base", or on this student ("emoji-dmd").

    Raises:
        ValueError: no such pair; columns are missing; or the pair has no controls of its own and no file is given.
        Unavailable: a control is not on this machine.
    """
    embedded = spec_of(pair).embedded
    if not file and not embedded:
        raise ValueError(
            f"file={str(file)!r}: dtviz ships no controls for {pair!r}; give a CSV with the columns {', '.join(COLUMNS)}"
        )
    rows = _listed(Path(file)) if file else _shipped(trained_on)
    clip = embedder("emoji-clip" if embedded else CLIP)
    measure = "emoji-clip score" if embedded else "CLIP score"
    return [
        Case(control, tuple(texts), clip.name, clip.text(list(texts.values())), measure, scale)
        for control, texts, scale in rows
    ]


def _listed(file: Path) -> Iterator[tuple[Control, dict[str, str], float]]:
    """Each control of a CSV, its prompts with the texts they should come nearer to, and its scale."""
    table = pd.read_csv(file, keep_default_na=False)
    gone = [name for name in COLUMNS if name not in table.columns]
    if gone:
        raise ValueError(f"{file} lacks the columns {', '.join(gone)}; it has {', '.join(table.columns)}")
    for name, rows in table.groupby("control", sort=False):
        first, where = rows.iloc[0], Path(rows["file"].iloc[0])
        beside = file.parent / where
        repo, inside = "/".join(where.parts[:2]), "/".join(where.parts[2:])
        place = (beside, None) if beside.exists() else (repo, inside or None)
        control = load_control(place[0], weight_name=place[1], name=str(name))
        yield control, dict(zip(rows["prompt"], rows["towards"], strict=True)), float(first["scale"])


def _shipped(trained_on: str) -> Iterator[tuple[Control, dict[str, str], float]]:
    """The same of the shipped controls that were trained on the base, or on this student."""
    for control in shipped():
        told = control.facts
        where = told["trained_on"]
        if trained_on == ("base" if where["role"] == "base" else where["pair"]):
            towards = [told["towards"]] * len(told["prompts"]) if isinstance(told["towards"], str) else told["towards"]
            yield control, dict(zip(told["prompts"], towards, strict=True)), float(told.get("scale", 1.0))


def students(pair: str) -> dict[str, str]:
    """The paper's four students of a pair's base: heading -> name of the pair.

    >>> students("emoji-dmd")["LCM"]
    'emoji-lcm'
    """
    family = pair.split("-")[0]
    return {heading: f"{family}-{name}" for name, heading in STUDENTS.items()}
