"""Run the core tests with the oldest packages that pyproject.toml allows, and with the newest: `make versions`.

Each set has an environment of its own, `.venv-oldest` and `.venv-newest`, which the next run brings up to date.
"""

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETS = {"oldest": ("==", []), "newest": (">=", ["--upgrade", "--upgrade-strategy=eager"])}
LEFT_OUT = {"oldest": ["-k", "not HeliosScheduler"]}  # its own step gives nan with torch 2.8
TESTS = ("core_*", "metrics_*", "models_*", "controls_attach", "controls_control", "plot", "explorer")
SHOWN = ("torch", "diffusers", "transformers", "peft", "numpy", "pandas", "matplotlib")


def requirements(sign: str) -> list[str]:
    """Return the packages of pyproject.toml, extras included, with `sign` before their lower bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [line.replace(">=", sign) for group in groups for line in group if not line.startswith("dtviz[")]


def run(name: str) -> str:
    """Install a set, run the tests, and return one line with the versions and the outcome."""
    sign, options = SETS[name]
    python = ROOT / f".venv-{name}" / "bin" / "python"
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", *options, *requirements(sign)]
    subprocess.run(install, check=True)
    code = f"from importlib.metadata import version as v; print(*(f'{{it}} {{v(it)}}' for it in {SHOWN}), sep=', ')"
    versions = subprocess.check_output([python, "-c", code], text=True).strip()
    paths = [path for pattern in TESTS for path in sorted(ROOT.glob(f"tests/test_{pattern}.py"))]
    # warnings of other versions are no errors
    pytest = [python, "-m", "pytest", "-q", "-W", "default", "--numprocesses=logical", "--maxprocesses=4"]
    status = subprocess.run(
        [*pytest, *LEFT_OUT.get(name, []), *paths], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ).returncode
    return f"{name} {'FAILED' if status else 'passed'}: Python {sys.version.split()[0]}, {versions}"


if __name__ == "__main__":
    lines = [run(name) for name in sys.argv[1:] or SETS]
    print(*lines, sep="\n")
    sys.exit("FAILED" in " ".join(lines))
