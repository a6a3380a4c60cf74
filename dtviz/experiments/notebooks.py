"""Run the notebooks that make the figures, several at a time, through papermill.

run(["fig5", "table3"], pair="emoji-dmd", parameters={"n_seeds": 4})
"""

import html
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files import ROOT, one_line, write_atomic
from ..models.load import check_available
from ..models.registry import spec_of
from .paper import check_profile, figures_folder

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<style>body {{font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em}} img {{max-width: 100%}}
figure {{margin: 3em 0}} figcaption {{color: #555}}</style>
<h1>{title}</h1>
{body}"""


class NotebookError(RuntimeError):
    """One or more notebooks failed. The message names each, its cell, its error and where to read it."""


def notebooks(folder: Path) -> dict[str, dict[str, str]]:
    """Return the parameters of each notebook in a folder: name -> parameter -> type ("int", ...). The paper's come first."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no notebooks folder at {folder}: the notebooks are in a checkout of dtviz")
    from papermill import inspect_notebook

    return {
        path.stem: {name: one["inferred_type_name"] for name, one in inspect_notebook(path).items()}
        for path in sorted(folder.glob("*.ipynb"), key=_order)
    }


def run(
    names: Iterable[str] | None = None, *, pair: str = "emoji-dmd", profile: str = "quick", jobs: int | None = None,
    out: str | Path | None = None, parameters: Mapping[str, Any] | None = None, folder: str | Path | None = None,
) -> list[Path]:  # fmt: skip
    """Execute notebooks and return the executed copies, `<out>/<name>.ipynb`. `<out>/index.html` shows all pictures.

    A failed copy is kept as `<name>.failed.ipynb`, and the others still run. Bad input is refused before anything runs.

    Args:
        names: names, or short names up to the first underscore ("fig5"). None takes all that have parameters.
        pair, profile, parameters: passed to every notebook. Each must have all of them.
        jobs: notebooks at a time. None: one per core, at most four, for embedded pairs, and one for hub pairs.
        out, folder: where the results go (None: `figures_folder`), and where the notebooks are (None: the checkout's).
    """
    check_profile(profile)
    if own := sorted({"pair", "profile", "out"} & set(parameters or ())):
        raise ValueError(f"{own[0]!r} is given as {own[0]}=..., not among the parameters")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs} must be at least 1")
    check_available(pair)  # before papermill is loaded
    target, folder = figures_folder(pair, profile, out or "").resolve(), Path(folder or ROOT / "notebooks")
    values = {"pair": pair, "profile": profile} | dict(parameters or {})
    values |= {} if out is None else {"out": os.path.relpath(target, ROOT)}
    chosen = [folder / f"{name}.ipynb" for name in _choose(names, notebooks(folder), values)]
    at_once = jobs or (min(_cores(), 4) if spec_of(pair).embedded else 1)  # two hub pairs may not fit an accelerator
    return _run_all(chosen, values, target, min(at_once, len(chosen)))


def _choose(names: Iterable[str] | None, existing: dict[str, dict[str, str]], values: dict[str, Any]) -> list[str]:
    """Return the whole names, each once, after a check of them and of the parameters."""
    chosen = [name for name, declared in existing.items() if declared] if names is None else []
    for name in names or ():
        matches = [name] if name in existing else [other for other in existing if other.split("_")[0] == name]
        if len(matches) > 1:
            raise ValueError(f"notebook {name!r} may be any of {', '.join(matches)}: give the whole name")
        if not matches:
            raise ValueError(f"there is no notebook {name!r}; there are: {', '.join(existing)}")
        chosen += matches
    if not chosen:
        raise ValueError(f"no notebook with parameters is named: there are {', '.join(existing) or 'none'}")
    for notebook, (name, value) in itertools.product(chosen, values.items()):
        declared, given = existing[notebook], type(value).__name__
        if name not in declared:
            listed = ", ".join(declared) or "no cell tagged `parameters`"
            raise ValueError(f"notebook {notebook} has no parameter {name!r}; it has: {listed}")
        kind = declared[name]  # papermill calls a parameter without a type "None"
        if kind not in (given, "None") and (kind, given) != ("float", "int"):
            raise ValueError(f"parameter {name!r} of notebook {notebook} is of type {kind}, got {value!r} ({given})")
    return list(dict.fromkeys(chosen))


def _cores() -> int:
    """Return the cores of this process, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_all(chosen: list[Path], values: dict[str, Any], target: Path, workers: int) -> list[Path]:
    target.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": str(max(1, _cores() // workers))} if workers > 1 else {}
    environment = threads | dict(os.environ)
    print(f"{len(chosen)} notebook(s), {values['pair']}, {workers} at a time -> {os.path.relpath(target)}/")
    start, kernels, failures, pool = time.monotonic(), [], [], ThreadPoolExecutor(workers)
    partials = {path.stem: target / f".{path.stem}.{os.getpid()}.ipynb" for path in chosen}
    jobs = {}
    try:
        for path in chosen:
            jobs[pool.submit(_execute, path, partials[path.stem], values, environment, kernels)] = path.stem
        for count, job in enumerate(as_completed(jobs), start=1):
            name, reason, seconds = jobs[job], job.result(), time.monotonic() - start
            left = f"{count} of {len(jobs)}, about {seconds * (len(jobs) / count - 1) / 60:.1f} min left"
            failed = target / f"{name}.failed.ipynb"
            if not reason:
                os.replace(partials[name], target / f"{name}.ipynb")
                failed.unlink(missing_ok=True)
                print(f"{name}  done after {seconds:.0f} s ({left})", flush=True)
                continue
            if partials[name].exists():
                os.replace(partials[name], failed)
                reason += f" (see {os.path.relpath(failed)})"
            failures.append(f"{name}, {reason}")
            print(f"{name}  FAILED after {seconds:.0f} s ({left})", file=sys.stderr)
    finally:  # after Ctrl-C for example
        pool.shutdown(wait=False, cancel_futures=True)
        while not all(job.done() for job in jobs):
            for kernel in kernels:
                with suppress(OSError, AttributeError):  # it has not started, or has ended
                    kernel.provisioner.process.kill()
            time.sleep(0.1)
        for partial in partials.values():
            partial.unlink(missing_ok=True)
    if any(target.glob("*.png")):
        print(f"All pictures: {os.path.relpath(_write_page(target, values['pair']))}")
    if failures:
        raise NotebookError(f"{len(failures)} of {len(chosen)} notebooks failed:\n" + "\n".join(failures))
    return [target / f"{name}.ipynb" for name in sorted(partials)]


def _order(path: Path) -> tuple[bool, str]:
    """Sort the paper's figures and tables before the others."""
    return not path.stem.startswith(("fig", "table")), path.stem


def _write_page(folder: Path, pair: str) -> Path:
    """Write index.html with the folder's pictures, their captions, and links to notebooks and tables."""
    figures = []
    for picture in sorted(folder.glob("*.png"), key=_order):
        name, beside = picture.name, [picture.with_suffix(f".{kind}") for kind in ("ipynb", "csv", "pdf", "json")]
        links = " ".join(f'<a href="{path.name}">{path.name}</a>' for path in beside if path.exists())
        text = json.loads(beside[-1].read_text()).get("caption", "") if beside[-1].exists() else ""
        caption = f"<figcaption><b>{picture.stem}</b> {html.escape(text)}<br>{links}</figcaption>"
        figures.append(f'<figure><a href="{name}"><img src="{name}" alt="{picture.stem}"></a>\n{caption}</figure>')
    page = PAGE.format(title=html.escape(f"dtviz: figures of {pair}"), body="\n".join(figures))
    write_atomic(folder / "index.html", page.encode())
    return folder / "index.html"


def _execute(path: Path, partial: Path, values: dict[str, Any], environment: dict[str, str], kernels: list) -> str:
    """Run a notebook. Return "", or the reason of the failure. Its kernel is put into `kernels` and ends with this process."""
    import papermill
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import ensure_event_loop

    class Kernel(AsyncKernelManager):
        async def start_kernel(self, **options: Any) -> None:
            # without a folder of kernels this interpreter is the kernel, whatever the user has installed
            self.kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
            kernels.append(self)
            quiet = {"extra_arguments": ["--log-level=ERROR"]}  # it warns of plain TCP on its own machine
            await super().start_kernel(**options | quiet | {"cwd": str(ROOT), "env": environment})

    paths = [os.path.relpath(file) for file in (path, partial)]  # papermill writes them into the notebook
    options = {"kernel_name": "python3", "kernel_manager_class": Kernel, "progress_bar": False}
    try:
        papermill.execute_notebook(*paths, parameters=values, **options)
    except papermill.PapermillExecutionError as error:
        return f"cell In [{error.exec_count}]: {' '.join(f'{error.ename}: {error.evalue}'.split())[:400]}"
    except Exception as error:
        return f"stopped without an error in a cell: {one_line(error)}"
    finally:
        ensure_event_loop().close()  # nbclient opened one in this thread
    return ""
