"""Ours beside the paper's printed numbers.

beside(table, long(tables.golden("table3"), rows="prompt"))     # prompt, method, ours, paper, difference
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def long(printed: pd.DataFrame, *, rows: str, name: str = "method") -> pd.DataFrame:
    """A printed table, one row a `rows`, in long form: `rows`, `name` (its column there) and `value`; empty cells left out.

    >>> long(pd.DataFrame({"prompt": ["Person"], "base": [0.484]}), rows="prompt").values.tolist()
    [['Person', 'base', 0.484]]
    """
    return printed.melt(id_vars=rows, var_name=name, value_name="value").dropna(subset="value").reset_index(drop=True)


def beside(ours: pd.DataFrame, paper: pd.DataFrame, *, on: Sequence[str] = ("prompt", "method")) -> pd.DataFrame:
    """The rows that both tables have, in the paper's order: ours, the paper's, and the difference.

    Args:
        ours: long, columns `on`, `value`, and `low` and `high` where there is an interval.
        paper: long, columns `on` and `value`; texts are matched whatever their case.

    Returns:
        Columns `on`, `ours`, `low` and `high` if there, `paper`, `difference` (ours - paper), `ratio` (ours / paper), and
        with an interval `within`, whether it holds the paper's value. No row where nothing is the same.

    Raises:
        ValueError: a table has a row twice.

    >>> ours = pd.DataFrame({"prompt": ["person"], "method": ["base"], "value": [0.5]})
    >>> paper = pd.DataFrame({"prompt": ["Person"], "method": ["base"], "value": [0.484]})
    >>> round(beside(ours, paper)["difference"].item(), 3)
    0.016
    """
    on = list(on)
    keyed = []
    for name, table in (("ours", ours), ("paper", paper)):
        keys = table[on].astype(str).apply(lambda column: column.str.casefold())
        if keys.duplicated().any():
            raise ValueError(f"{name} has {table.loc[keys.duplicated(), on].values.tolist()} twice")
        keyed.append(table.set_index(pd.MultiIndex.from_frame(keys)))
    left = keyed[0].rename(columns={"value": "ours"})
    both = keyed[1].rename(columns={"value": "paper"}).join(left.drop(columns=on), how="inner").reset_index(drop=True)
    both["difference"], both["ratio"] = both["ours"] - both["paper"], both["ours"] / both["paper"]
    bounds = [name for name in ("low", "high") if name in both]
    if len(bounds) == 2:
        both["within"] = both["paper"].between(both["low"], both["high"])
    return both[[*on, "ours", *bounds, "paper", "difference", "ratio", *(["within"] if bounds else [])]]
