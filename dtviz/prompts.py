"""The prompts of a job: a CSV with one image to make a row, in the published form.

rows = prompts.read("coco_30k.csv")     # [Row(case="000000203564", prompt="A bicycle replica ...", seed=41337), ...]
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

CASE = ("case_number", "image_id")  # the published files' names for a row's number, the first that is there counts
CASES = re.compile(r"[A-Za-z0-9_-]{1,200}")  # names of files: they lead to no other folder and fit every file system
SHOWN = 10  # bad rows named in an error


class Row(NamedTuple):
    """One image to make; `case` is the name of its file."""

    case: str
    prompt: str
    seed: int


def read(path: str | Path) -> list[Row]:
    """The rows of a prompts file: CSV with the columns `case_number` (or `image_id`), `prompt`, `evaluation_seed`.

    Other columns are passed over. A case is a word of letters, digits, - and _, kept as it stands ("000000203564"); a prompt
    may hold commas and line breaks in quotes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or rows are bad: each is named with its line.
    """
    rows, bad, lines = [], [], {}
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            heads = reader.fieldnames or []
            case = next((name for name in CASE if name in heads), CASE[0])
            if gone := [name for name in (case, "prompt", "evaluation_seed") if name not in heads]:
                there = " ".join(", ".join(heads).split())[:300]  # a head may hold line breaks
                raise ValueError(f"{path} lacks the columns {', '.join(gone)}; it has {there or 'none'}")
            line = reader.line_num + 1  # where the row starts; a row may span several
            for cells in reader:
                row, problem = _row(cells, case)
                if row and row.case in lines:
                    problem = f"{case} {row.case!r} is also on line {lines[row.case]}"
                if problem:
                    bad.append(f"line {line}: {problem}")
                else:
                    rows.append(row)
                    lines[row.case] = line
                line = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a CSV file in UTF-8, after line {reader.line_num}: {error}") from error
    if bad:
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise ValueError(f"{path} has {len(bad)} bad rows: {'; '.join(bad[:SHOWN])}{more}")
    if not rows:
        raise ValueError(f"{path} has no rows below its head")
    return rows


def _row(cells: Mapping[str, str | None], case: str) -> tuple[Row | None, str]:
    """A row, or None and what is wrong with it."""
    name, prompt, seed = ((cells[column] or "") for column in (case, "prompt", "evaluation_seed"))
    if cells.get(None):
        return None, f"{len(cells[None])} cells too many; a prompt with a comma needs quotes"
    if not CASES.fullmatch(name.strip()):
        return None, f"{case} {name[:210]!r} must be a word of letters, digits, - and _, no longer than 200"
    if not prompt.strip():
        return None, "prompt is empty"
    if not re.fullmatch(r"[0-9]{1,18}", seed.strip()):
        return None, f"evaluation_seed {seed[:30]!r} must be an integer, 0 or above"
    return Row(name.strip(), prompt, int(seed)), ""
