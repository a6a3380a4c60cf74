"""Where dtviz's own files are: in the checkout, unless the environment says otherwise."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def data(name: str) -> Path:
    """A folder of `data`; for "models", `$DTVIZ_MODELS` points elsewhere."""
    return Path(os.environ.get(f"DTVIZ_{name.upper()}") or ROOT / "data" / name)
