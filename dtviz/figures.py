"""Run the notebooks that make the figures: strictly, side by side, through papermill.

    from dtviz.figures import run

    run(["fig5", "table3"], pair="emoji-dmd", parameters={"n_seeds": 4})

Papermill only logs a parameter that a notebook does not have, and a notebook without a parameters cell. Here both are
refused, with everything else that can be known beforehand, before any slow work begins.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .models.specs import spec_of
from .notebooks import Notebook as Notebook
from .notebooks import check_parameters, choose, paths
from .notebooks import notebooks as notebooks
from .pairs import check
from .places import ROOT as ROOT
from .prefork import serving
from .profiles import PROFILES as PROFILES
from .profiles import check_profile

# What every notebook begins with, imported once for all of them: five seconds each
IMPORTS = (
    "papermill.cli",
    "ipykernel.kernelapp",
    "matplotlib.backends.backend_pdf",
    "matplotlib.pyplot",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "efficientnet_lite_pytorch",
    "dtviz.control.cases",
    "dtviz.plot",
)
_OWN = ("pair", "profile", "out")  # parameters that `run` sets from its own arguments


class NotebookError(RuntimeError):
    """One or more notebooks failed; the message names each, its cell, its error and where to read it."""


def run(
    names: Iterable[str] | None = None,
    *,
    pair: str = "emoji-dmd",
    profile: str = "quick",
    jobs: int | None = None,
    out: str | Path | None = None,
    parameters: Mapping[str, object] | None = None,
    folder: str | Path | None = None,
) -> list[Path]:
    """Execute notebooks, and return the executed copies, `<out>/<name>.ipynb`.

    names: names, or short names up to the first underscore ("fig5"); None: all of them.
    pair, profile: passed to every notebook; profile is "quick", "full" or "paper".
    jobs: how many run at once, the cores divided among them; None: one a core, four at most, of the embedded models,
        which are too small to keep two cores busy; one alone of the others, which may fill an accelerator's memory.
    out: folder for the executed notebooks and all they write; None: `figures/<pair>` in the checkout.
    parameters: further parameters, which every chosen notebook must have.
    folder: where the notebooks are; None: the checkout's `notebooks/`.

    An executed notebook replaces the one before it only when it is complete. One that fails leaves the earlier copy
    alone and is kept beside it as `<name>.failed.ipynb`; the others still run.

    Raises, before any work: ValueError for an unknown notebook, parameter, pair or profile, a parameter of another
    type than the notebook declares, or jobs < 1; `dtviz.Unavailable` for a pair that cannot be loaded here;
    FileNotFoundError without a notebooks folder. Afterwards: NotebookError if any notebook failed.

        run(["fig5"], parameters={"n_seeds": 4})
    """
    parameters = dict(parameters or {})
    check_profile(profile)
    if clash := sorted(parameters.keys() & set(_OWN)):
        raise ValueError(f"{clash[0]!r} is given as {clash[0]}=..., not among the parameters")
    there = paths(folder)
    check(pair)  # before the notebooks are read, which loads papermill
    chosen = choose(names, there)
    workers = _workers(jobs, len(chosen), small=spec_of(pair).embedded)
    target = Path(out).resolve() if out is not None else ROOT / "figures" / pair
    values = (
        {"pair": pair, "profile": profile}
        | ({} if out is None else {"out": os.path.relpath(target, ROOT)})
        | parameters
    )
    for notebook in chosen:
        check_parameters(notebook, values)
    return _run_all(chosen, values=values, target=target, workers=workers)


def _cores() -> int:
    # what this process may use, which in a container is less than the machine has
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers(jobs: int | None, notebooks: int, *, small: bool) -> int:
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs} must be at least 1")
    usual = min(_cores(), 4) if small else 1
    return min(notebooks, usual if jobs is None else jobs)


@dataclass(frozen=True)
class _Running:
    name: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    partial: Path  # executed so far
    failed: Path  # where it is kept if it fails
    started: float


def _run_all(chosen: list[Notebook], *, values: Mapping[str, object], target: Path, workers: int) -> list[Path]:
    import yaml
    from tqdm.auto import tqdm

    target.mkdir(parents=True, exist_ok=True)
    parameters = yaml.safe_dump(dict(values))  # not JSON: papermill reads YAML, for which JSON's 1e-05 is a string
    waiting, running, done, failures = sorted(chosen, key=lambda notebook: -_took(notebook, target)), [], [], []
    with (
        forks(IMPORTS, environment=_environment(workers)) as (python, environment),
        tqdm(total=len(chosen), unit="notebook", disable=None, leave=False) as bar,  # None: only on a terminal
    ):
        bar.write(
            f"{len(chosen)} notebook(s), {values['pair']}, {values['profile']} profile, {workers} at a time "
            f"-> {_short(target)}/"
        )
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(
                        _start(waiting.pop(0), python, parameters=parameters, target=target, environment=environment)
                    )
                    bar.set_postfix_str(", ".join(job.name for job in running), refresh=False)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    seconds = f"{time.monotonic() - job.started:.0f} s"
                    if job.process.returncode == 0:
                        done.append(_keep(job, target))
                        picture = target / f"{job.name}.png"
                        shown = picture if picture.exists() else done[-1]
                        bar.write(f"{job.name}  done in {seconds} -> {_short(shown)}")
                    else:
                        failures.append(_failure(job))
                        bar.write(f"{job.name}  FAILED after {seconds}", file=sys.stderr)
                    bar.update()
                bar.refresh()  # keeps the clock going
                time.sleep(0.2)
        finally:
            _stop(running)
    if failures:
        raise NotebookError(f"{len(failures)} of {len(chosen)} notebooks failed:\n" + "\n".join(failures))
    return sorted(done)


def _took(notebook: Notebook, target: Path) -> float:
    """Seconds that it took last time, by the copy that is there: the longest go first, so that none is left for the end."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        return float(json.loads((target / f"{notebook.name}.ipynb").read_bytes())["metadata"]["papermill"]["duration"])
    return 0.0


@contextmanager
def forks(modules: Sequence[str], *, environment: Mapping[str, str]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """For as long as the block lasts: `python -m` with these imports made, and an environment in which kernels are that too."""
    environment = dict(environment) | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    with (
        tempfile.TemporaryDirectory(prefix="dtviz-jupyter-") as jupyter,
        serving(modules, environment=environment | {"JPY_PARENT_PID": "1"}) as python,  # no kernel from a terminal
    ):
        yield python, environment | {"JUPYTER_PATH": _kernel(Path(jupyter), python)}


def _environment(workers: int) -> dict[str, str]:
    """Environment of the child processes: no more threads than there are cores."""
    environment = dict(os.environ)
    if workers > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // workers)))
    return environment


def _kernel(jupyter: Path, python: list[str]) -> str:
    """JUPYTER_PATH on which the kernel `python3` is the interpreter that runs dtviz.

    Whatever kernel of that name a user has installed, Jupyter looks in JUPYTER_PATH first.
    """
    kernel = jupyter / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [*python, "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "dtviz", "language": "python"}))
    others = os.environ.get("JUPYTER_PATH")
    return os.pathsep.join([str(jupyter), *([others] if others else [])])


def _start(
    notebook: Notebook, python: list[str], *, parameters: str, target: Path, environment: Mapping[str, str]
) -> _Running:
    partial = target / f".{notebook.name}.{os.getpid()}.ipynb"
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _stop, or when the job is forgotten
    command = [*python, "papermill", "--kernel", "python3", "--cwd", str(ROOT), "--no-progress-bar"]
    command += ["--parameters_yaml", parameters]
    # relative paths: papermill writes them into the notebook
    command += [os.path.relpath(path, ROOT) for path in (notebook.path, partial)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
    )
    return _Running(notebook.name, process, log, partial, target / f"{notebook.name}.failed.ipynb", time.monotonic())


def _keep(job: _Running, target: Path) -> Path:
    final = target / f"{job.name}.ipynb"
    os.replace(job.partial, final)
    job.failed.unlink(missing_ok=True)
    job.log.close()
    return final


def _failure(job: _Running) -> str:
    """One line that says what went wrong in a notebook, and where to read the whole."""
    job.log.seek(0)
    said = job.log.read().decode(errors="replace").strip().splitlines()
    job.log.close()
    reason = f"stopped without an error in a cell: {said[-1] if said else 'it said nothing'}"
    where = ""
    if job.partial.exists():
        import nbformat

        with suppress(ValueError):  # cut off by a full disk or a kill: then papermill's last line has to do
            for cell in nbformat.read(job.partial, as_version=4).cells:
                for output in cell.get("outputs", []):
                    if output.output_type == "error":
                        message = " ".join(f"{output.ename}: {output.evalue}".split())
                        reason = f"cell In [{cell.execution_count}]: {message[:400]}"
        os.replace(job.partial, job.failed)
        where = f" (see {_short(job.failed)})"
    return f"{job.name}, {reason}{where}"


def _stop(running: list[_Running]) -> None:
    """End what still runs: after Ctrl-C, say. Papermill takes its kernel with it."""
    for job in running:
        job.process.terminate()
    for job in running:
        try:
            job.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()
        job.log.close()
        job.partial.unlink(missing_ok=True)


def _short(path: Path) -> str:
    """`path` as seen from here, when it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
