"""The paper's prompts, methods, profiles and printed numbers.

methods = {label: METHODS[label] for label in ("base", "distilled", "hybrid")}
beside_paper(table, printed("table3").melt("prompt", var_name="method"))  # prompt, method, ours, paper, difference
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import HOME, data

if TYPE_CHECKING:  # the command line reads the profiles and answers before pandas is loaded
    import pandas as pd

PROFILES = ("quick", "full", "paper")  # a quick look, our results, the paper's own settings
QUICK_PROMPTS = 5  # as in the paper's Table 3
PAPER_BASE_STEPS = 50

# Label in figures -> (method, settings) of `generate`.
METHODS = {
    "base": ("base", {}),
    "distilled": ("distilled", {}),
    "hybrid": ("hybrid", {"handover": "distilled-scheduler"}),  # as published
    "hybrid σ": ("hybrid", {"handover": "matched-sigma"}),
    "skip": ("skip", {}),
}

# The paper's five prompts of Table 3, for hub pairs.
PAPER_PROMPTS = ("sunset beach", "cute puppy", "futuristic city", "person", "Van Gogh art")
# Embedded pairs: concepts drawn by five artists or more. The first five stand for the paper's.
EMOJI_PROMPTS = (
    "sunset", "dog face", "cityscape", "woman", "artist palette",
    "cat face", "rabbit face", "bear", "tiger face", "pig face", "frog", "penguin", "honeybee", "butterfly", "turtle",
    "octopus", "tropical fish", "whale", "elephant", "cactus", "palm tree", "tulip", "mushroom", "strawberry",
    "watermelon", "hamburger", "birthday cake", "umbrella", "crown", "guitar", "rocket", "bicycle", "ghost", "house",
    "volcano", "snowflake",
)  # fmt: skip


def check_profile(profile: str) -> None:
    """Raise a ValueError for an unknown profile."""
    if profile not in PROFILES:
        raise ValueError(f"profile={profile!r} is not one of {', '.join(PROFILES)}")


def figures_folder(pair: str, profile: str, out: str | Path = "") -> Path:
    """Return `out`, or by default `figures/<pair>`, with a folder `quick` inside for the quick profile."""
    return Path(out) if out else HOME / "figures" / pair / ("quick" if profile == "quick" else "")


def seeds_of(profile: str, n: int, *, quick: int, full: int, paper: int = 100, least: int = 1) -> range:
    """Return the seeds of a profile, or the first `n` if n is not 0. The paper has 100 images per prompt (Table 3)."""
    check_profile(profile)
    if n != 0 and n < least:
        raise ValueError(f"n_seeds={n} must be at least {least}, or 0 for the {profile} profile's")
    return range(n or {"quick": quick, "full": full, "paper": paper}[profile])


def printed(name: str) -> pd.DataFrame:
    """Return a table of the paper as printed, such as "table3". Its last row is the average."""
    from .tables import load

    return load(data("paper") / f"{name}.csv")


def beside_paper(ours: pd.DataFrame, paper: pd.DataFrame, *, on: Sequence[str] = ("prompt", "method")) -> pd.DataFrame:
    """Return the rows with a value in both long tables, in the paper's order, matched in any case: `paper` and `ours`.

    `difference` is ours - paper, `ratio` ours / paper. `within`: the interval from `low` to `high` holds the paper's value.
    """
    folded = [table.set_index([table[column].astype(str).str.casefold() for column in on]) for table in (ours, paper)]
    ours, paper = (side.rename(columns={"value": name}) for side, name in zip(folded, ("ours", "paper"), strict=True))
    both = paper[[*on, "paper"]].join(ours.filter(["ours", "low", "high"]), how="inner", validate="1:1")
    both = both.dropna(subset=["ours", "paper"]).reset_index(drop=True)
    both["difference"], both["ratio"] = both["ours"] - both["paper"], both["ours"] / both["paper"]
    if "low" in both:
        both["within"] = both["paper"].between(both["low"], both["high"])
    return both
