"""Command line: `python -m dtviz figures | generate | score | store | pairs | doctor`.

Exit status: 0; 1 when a notebook failed or a result is damaged; 2 for bad input, said in one line on stderr; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import ast
import os
import signal
import sys
from collections.abc import Sequence

from dtviz import figures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return its exit status."""
    args = _parser().parse_args(argv)
    # `timeout` and CI end a run by SIGTERM: as an exception it stops the notebooks too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        args.command(args)
    except (figures.NotebookError, Damaged) as error:
        print(f"dtviz: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print("dtviz:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dtviz: interrupted", file=sys.stderr)
        return 130
    return 0


class Damaged(Exception):
    """Results that are not what they were written as."""


def _figures(args: argparse.Namespace) -> None:
    figures.run(
        None if args.only is None else [name.strip() for name in args.only.split(",")],
        pair=args.pair,
        profile=args.profile,
        jobs=args.jobs,
        out=args.out,
        parameters={name: _value(text) for name, text in args.parameter},
    )


def _pairs(args: argparse.Namespace) -> None:
    from dtviz.pairs import table

    print(table().to_string())


def _doctor(args: argparse.Namespace) -> None:
    from dtviz.doctor import report

    print(report(pairs=args.pairs or None))


def _generate(args: argparse.Namespace) -> None:
    from dtviz import prompts
    from dtviz.pairs import check, load

    rows = prompts.read(args.prompts)[: args.first]
    check(args.pair)
    import torch  # only now: bad rows are named before the seconds that torch and the models take

    from dtviz import dataset

    rank, world, local = (int(os.environ.get(name, usual)) for name, usual in _LAUNCHED.items())

    device = args.device or (f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    settings = {name: getattr(args, name) for name in (*_SETTINGS, "method", "handover", "convention")}
    settings = {name: value for name, value in settings.items() if value is not None}
    made = dataset.run(
        load(args.pair, device=device),
        rows,
        args.out,
        settings=settings,
        batch_size=args.batch_size,
        rank=rank,
        world=world,
        progress=rank == 0,
    )
    print(f"{args.out}: {len(rows)} images, {made} of them made now by process {rank + 1} of {world}")


def _score(args: argparse.Namespace) -> None:
    from dtviz import score, table
    from dtviz.embed import embedder

    embed, text = (name and embedder(name, device=args.device) for name in (args.embedder, args.text))
    found = score.score(args.dir, embed=embed, reference=args.reference, text=text)
    print(found.to_string(index=False, na_rep="", float_format="{:.4g}".format))
    print(table.save(found, f"{args.dir}/score.csv", units=score.UNITS))


def _store(args: argparse.Namespace) -> None:
    from dtviz.store import Store

    store = Store(args.root)
    chosen = [e for e in store.entries(args.kind) if not args.names or e.name.startswith(tuple(args.names))]
    if args.action == "ls":
        print("\n".join([f"{store.root}: {_total(chosen)}", *_listed(chosen, each=bool(args.kind or args.names))]))
        return
    if args.action == "rm" and not (args.names or args.kind or args.damaged):
        raise ValueError("store rm needs names, --kind or --damaged: it removes nothing that was not named")
    if args.action == "verify" or args.damaged:
        problems = [(entry, entry.problem()) for entry in chosen]
        damaged = [entry for entry, problem in problems if problem]
        told = [f"{entry.path}: {problem}" for entry, problem in problems if problem]
        print("\n".join(told) or f"{_total(chosen)}, all whole")
        chosen = damaged
    if args.action == "rm":
        for entry in chosen:
            entry.path.unlink()
        print(f"removed {_total(chosen)}")
    elif chosen:
        raise Damaged(
            f"{len(chosen)} damaged; each is made again when it is needed, or `store rm --damaged` removes them"
        )


def _total(entries: Sequence) -> str:
    return f"{len(entries)} results, {sum(entry.size for entry in entries) / 2**20:.1f} MiB"


def _listed(entries: Sequence, *, each: bool) -> list[str]:
    """One line a kind, or one a result: the start of its name, its size and what it is of."""
    if not each:
        kinds = sorted({entry.kind for entry in entries})
        return [f"{kind}: {_total([entry for entry in entries if entry.kind == kind])}" for kind in kinds]
    told = ("method", "prompt", "seeds", "of")
    lines = []
    for entry in entries:
        found = entry.settings or {}
        of = (
            ", ".join(f"{name}={found[name]}" for name in told if name in found)
            or f"settings: {', '.join(found) or '?'}"
        )
        lines.append(f"{entry.kind} {entry.name[:12]} {entry.size / 2**20:.2f} MiB  {of}")
    return lines


def _value(text: str) -> object:
    """A parameter as typed on the command line: a Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


# What torchrun and `accelerate launch` tell each process of: its number, how many, its number on this host
_LAUNCHED = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
# Numbers of `generate`, and what they are
_SETTINGS = {
    "k": (int, "leading student steps given to the base (hybrid) or left out (skip)"),
    "steps": (int, "the student's steps"),
    "base_steps": (int, "the base's steps"),
    "guidance": (float, "guidance of the student's steps"),
    "base_guidance": (float, "guidance of the base's steps"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dtviz", description="See what a diffusion model thinks at every step.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    make = commands.add_parser("figures", help="run the notebooks that make the figures and tables")
    make.set_defaults(command=_figures)
    make.add_argument("--pair", default="emoji-dmd", metavar="NAME", help="models to show (default: %(default)s)")
    make.add_argument("--only", metavar="NAMES", help="notebooks to run, comma-separated: fig5,table3 (default: all)")
    make.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="notebooks at once (default: one a core, four at most, on embedded pairs; else one)",
    )
    make.add_argument(
        "--profile",
        choices=figures.PROFILES,
        default="quick",
        help="how many seeds and prompts; paper: its own settings",
    )
    make.add_argument("--out", metavar="DIR", help="folder for the results (default: figures/NAME)")
    make.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter for every notebook that runs, as in papermill; may be repeated",
    )  # fmt: skip

    job = commands.add_parser("generate", help="make one image for each row of a prompts file; run again to go on")
    job.set_defaults(command=_generate)
    job.add_argument("--pair", default="emoji-dmd", metavar="NAME", help="models (default: %(default)s)")
    job.add_argument("--method", default="hybrid", help="base, distilled, hybrid or skip (default: %(default)s)")
    job.add_argument("--prompts", required=True, metavar="CSV", help="columns case_number, prompt, evaluation_seed")
    job.add_argument("--out", required=True, metavar="DIR", help="folder of the images, seen by all processes")
    job.add_argument("--first", type=int, metavar="N", help="only the first N rows (default: all)")
    job.add_argument("--handover", help="distilled-scheduler or matched-sigma (default: the pair's)")
    job.add_argument("--convention", help="of a base guidance of 0: diffusers or formula (default: diffusers)")
    for name, (kind, text) in _SETTINGS.items():
        job.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=f"{text} (default: as generate)")
    job.add_argument("--batch-size", type=int, metavar="N", help="images denoised together (default: the pair's)")
    job.add_argument("--device", help="torch device (default: this process's GPU, or the CPU)")

    rate = commands.add_parser("score", help="measure a folder of images, against real ones and against its prompts")
    rate.set_defaults(command=_score)
    rate.add_argument("dir", metavar="DIR", help="a folder that `generate` made, or any folder of images")
    rate.add_argument("--reference", metavar="DIR", help="a folder of real images, or one that `generate` made")
    rate.add_argument("--embedder", default="inception", metavar="NAME", help="whose features (default: %(default)s)")
    rate.add_argument("--text", metavar="NAME", help="a CLIP for the prompts: clip:<hub id or folder>, emoji-clip")
    rate.add_argument("--device", help="torch device (default: the GPU, or the CPU)")

    keep = commands.add_parser("store", help="what results are kept, whether they are whole, and removing them")
    keep.set_defaults(command=_store)
    keep.add_argument("action", choices=("ls", "rm", "verify"), help="list, remove, or check every byte by its hash")
    keep.add_argument("names", nargs="*", metavar="NAME", help="only results whose name starts so (default: all)")
    keep.add_argument("--kind", help="only results of this kind: trace, features, ...")
    keep.add_argument("--damaged", action="store_true", help="of rm: only what is damaged")
    keep.add_argument("--root", metavar="DIR", help="the store (default: DTVIZ_STORE, or .dtviz in the repository)")

    commands.add_parser("pairs", help="list the pairs of models").set_defaults(command=_pairs)

    look = commands.add_parser(
        "doctor", help="what is here: versions, devices, the hub's cache, pairs and what they lack"
    )
    look.set_defaults(command=_doctor)
    look.add_argument("pairs", nargs="*", metavar="PAIR", help="only these pairs (default: all)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
