"""Long-form tables with units, and Table 3 made from one: prompts x methods, value and interval, best value bold.

    table = add_average(table, interval=dtviz.diversity.mean_interval)
    save(table, "table3.csv", units={"value": "1 - cosine", "low": "1 - cosine", "high": "1 - cosine"})
    show(table)                                   # in a notebook
    print(latex(table))

A long table has one row a measurement: `prompt`, `method`, `value`, and where there is an interval `low` and `high`.
On disk a unit stands in the column's head, `value [1 - cosine]`, so the file stays a plain CSV.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from .outside import reading
from .places import data
from .store import write_whole

AVERAGE = "Average"
GOLDEN = data("golden")


def save(table: pd.DataFrame, path: str | Path, *, units: Mapping[str, str]) -> Path:
    """Write `table` as CSV, units in the heads, whole or not at all; floats keep every digit. Returns the path.

    units: column -> unit; every column of floats needs one ("1" for a pure number). ValueError: a float column without,
    a unit for a column that is not there, a bracket in a name.

    >>> import tempfile
    >>> save(pd.DataFrame({"value": [0.25]}), tempfile.mkdtemp() + "/t.csv", units={"value": "s"}).read_text()
    'value [s]\\n0.25\\n'
    """
    unknown = set(units) - set(table.columns)
    missing = [name for name in table.columns if table[name].dtype.kind == "f" and name not in units]
    if unknown or missing:
        raise ValueError(
            f"units name {sorted(unknown)}, which the table lacks; columns {missing} hold floats and have no unit "
            '(give "1" for a pure number)'
        )
    bracketed = [text for text in [*table.columns, *units.values()] if re.search(r"[\[\]]", str(text))]
    if bracketed:
        raise ValueError(f"columns or units {bracketed} hold a bracket, which marks the unit in the CSV's head")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    headed = table.rename(columns={name: f"{name} [{unit}]" for name, unit in units.items()})
    write_whole(path, headed.to_csv(index=False, lineterminator="\n").encode(), shared=True)
    return path


def load(path: str | Path) -> pd.DataFrame:
    """Read what `save` wrote: plain column names, and the units in `table.attrs["units"]`. ValueError: it is no table.

    >>> load(GOLDEN / "table3.csv").columns.tolist()
    ['prompt', 'base', 'distilled', 'hybrid']
    """
    # Only an empty cell is missing: "NA" and "null" are words that a prompt may hold.
    with reading(path):
        table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    heads = {head: re.fullmatch(r"(.*) \[(.*)\]", head) for head in table.columns}
    table = table.rename(columns={head: found[1] for head, found in heads.items() if found})
    table.attrs["units"] = {found[1]: found[2] for found in heads.values() if found}
    return table


def golden(name: str) -> pd.DataFrame:
    """The paper's own table, as printed; Table 3's last row is the average. ValueError: a name that is not there.

    >>> golden("table3").set_index("prompt").loc["Person", "hybrid"].item()
    0.461
    """
    known = sorted(file.stem for file in GOLDEN.glob("*.csv"))
    if name not in known:
        raise ValueError(f"name = {name!r} is not a golden table; there are {known} in {GOLDEN}")
    return load(GOLDEN / f"{name}.csv")


def add_average(table: pd.DataFrame, *, interval: Callable) -> pd.DataFrame:
    """The table with one more prompt, "Average": each method's mean over prompts with its interval.

    table: long, columns `prompt`, `method`, `value`. interval: values (prompt,) -> an object with value, low, high, n,
    such as `diversity.mean_interval`; n, the number of prompts, is kept where the table has such a column.
    ValueError: an average is already there, or a method lacks a prompt.

    >>> from types import SimpleNamespace
    >>> mean = lambda v: SimpleNamespace(value=v.mean(), low=v.min(), high=v.max(), n=len(v))
    >>> t = pd.DataFrame({"prompt": ["cat", "dog"], "method": ["base", "base"], "value": [1.0, 3.0]})
    >>> add_average(t, interval=mean)["value"].tolist()
    [1.0, 3.0, 2.0]
    """
    if (table["prompt"] == AVERAGE).any():
        raise ValueError(f"table already has the prompt {AVERAGE!r}; give the prompts' rows only")
    values = wide(table)
    rows = []
    for method in values.columns:
        mean = interval(values[method].to_numpy())
        rows.append(
            {"prompt": AVERAGE, "method": method, "value": mean.value, "low": mean.low, "high": mean.high, "n": mean.n}
        )
    kept = [name for name in rows[0] if name != "n" or name in table.columns]
    return pd.concat([table, pd.DataFrame(rows)[kept]], ignore_index=True)


def wide(table: pd.DataFrame, *, value: str = "value") -> pd.DataFrame:
    """One column of a long table as prompts x methods, both in order of appearance.

    ValueError: a prompt and method given twice, or a method that lacks a prompt.

    >>> table = pd.DataFrame({"prompt": ["dog", "dog"], "method": ["base", "hybrid"], "value": [0.1, 0.2]})
    >>> wide(table).loc["dog"].tolist()
    [0.1, 0.2]
    """
    twice = table[table.duplicated(["prompt", "method"])]
    cells = table.drop_duplicates(["prompt", "method"]).pivot(index="prompt", columns="method", values="value")
    if len(twice) or cells.isna().any(axis=None):
        raise ValueError(
            f"table needs one value for each prompt and method; twice: {twice[['prompt', 'method']].values.tolist()}, "
            f"missing: {cells.isna().stack().loc[lambda gap: gap].index.tolist()}; is there more than one pair in it?"
        )
    cells = table.pivot(index="prompt", columns="method", values=value)
    return cells.reindex(index=table["prompt"].unique(), columns=table["method"].unique())


def best(values: pd.DataFrame, *, digits: int = 3) -> pd.DataFrame:
    """True where a cell is the largest of its row as printed; what is equal at `digits` is equally best.

    >>> best(pd.DataFrame({"base": [0.4], "hybrid": [0.3]})).loc[0].tolist()
    [True, False]
    """
    printed = values.round(digits)
    return printed.eq(printed.max(axis=1), axis=0)


def show(table: pd.DataFrame, *, digits: int = 3):
    """A pandas Styler of the long table as prompts x methods, best value bold, for a notebook.

    >>> "font-weight: bold" in show(pd.DataFrame({"prompt": ["dog"], "method": ["base"], "value": [0.1]})).to_html()
    True
    """
    bold = best(wide(table), digits=digits).map({True: "font-weight: bold", False: ""}.get)
    cells = _cells(table, digits=digits, between=" ± ", after="").style.apply(lambda _: bold, axis=None)
    return cells.format_index(escape="html", axis=0).format_index(escape="html", axis=1)  # a prompt may hold HTML


def latex(table: pd.DataFrame, *, digits: int = 3) -> str:
    """The long table as a booktabs tabular, best value bold, a rule above the average.

    >>> print(latex(pd.DataFrame({"prompt": ["dog"], "method": ["base"], "value": [0.1]})))
    \\begin{tabular}{lr}
    \\toprule
    Prompt & Base \\\\
    \\midrule
    dog & \\textbf{0.100} \\\\
    \\bottomrule
    \\end{tabular}
    """
    bold = best(wide(table), digits=digits)
    cells = _cells(table, digits=digits, between=r" {\scriptsize$\pm$", after="}")
    strong = cells.map(lambda text: re.sub(r"^\S+", r"\\textbf{\g<0>}", text))
    heads = [_escape(method[:1].upper() + method[1:]) for method in cells.columns]
    lines = [rf"\begin{{tabular}}{{l{'r' * len(heads)}}}", r"\toprule", _row(["Prompt", *heads]), r"\midrule"]
    for prompt, texts in strong.where(bold, cells).iterrows():
        lines += [r"\midrule"] * (prompt == AVERAGE) + [_row([_escape(prompt), *texts])]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _cells(table: pd.DataFrame, *, digits: int, between: str, after: str) -> pd.DataFrame:
    """Each cell's text: the value, and where there is an interval the half of its width."""
    texts = wide(table).map(f"{{:.{digits}f}}".format)
    if not {"low", "high"} <= set(table.columns):
        return texts
    half = (wide(table, value="high") - wide(table, value="low")) / 2
    return texts + half.map(lambda width: "" if pd.isna(width) else f"{between}{width:.{digits}f}{after}")


def _row(cells) -> str:
    return " & ".join(cells) + r" \\"


def _escape(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda found: named.get(found[0], "\\" + found[0]), text)
