"""Command line: `python -m dtviz figures | pairs | generate | score`.

Exit status: 0; 1 when a notebook failed; 2 for bad input, explained in one line on stderr; 130 after Ctrl-C.
"""

import argparse
import ast
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from .experiments import notebooks, paper
from .models import registry

_SETTINGS = {
    "k": (int, "leading steps of the distilled model given to the base (hybrid) or left out (skip)"),
    "steps": (int, "steps of the distilled model"),
    "base_steps": (int, "steps of the base"),
    "guidance": (float, "guidance of the distilled model's steps"),
    "base_guidance": (float, "guidance of the base's steps"),
    "handover": (str, "distilled-scheduler or matched-sigma"),
    "convention": (str, "meaning of a base guidance of 0: diffusers or formula"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default this process's, and return its exit status."""
    args = _parser().parse_args(argv)
    # `timeout` and CI end a run by SIGTERM: as an exception it ends the notebooks too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        args.command(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has enough, as in `pairs | head`; Python flushes again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except notebooks.NotebookError as error:
        print(f"dtviz: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print("dtviz:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"dtviz: {error}; the extra dtviz[notebooks] installs it", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dtviz: interrupted", file=sys.stderr)
        return 130
    return 0


def _figures(args: argparse.Namespace) -> None:
    names = args.only and args.only.replace(" ", "").split(",")
    options = {name: getattr(args, name) for name in ("pair", "profile", "jobs", "out")}
    notebooks.run(names, **options, parameters={name: _value(text) for name, text in args.parameter})


def _generate(args: argparse.Namespace) -> None:
    from .experiments.dataset import generate_images, read_prompts
    from .models.load import check_available, load

    rows = read_prompts(args.prompts)
    check_available(args.pair)
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=args.device == "cpu" or not torch.cuda.is_available())  # this process of torchrun's
    pair = load(args.pair, device=args.device or str(state.device))
    settings = {name: value for name, value in vars(args).items() if name in ("method", *_SETTINGS)}
    options = {"batch_size": args.batch_size, "progress": state.is_main_process}
    count = generate_images(pair, rows, args.out, settings=settings, **options)
    by = f"process {state.process_index + 1} of {state.num_processes}"
    print(f"{args.out}: {len(rows)} images, {count} of them generated now by {by}")
    state.destroy_process_group()


def _score(args: argparse.Namespace) -> None:
    from .experiments import tables
    from .experiments.dataset import score_images
    from .metrics.embedders import embedder

    embed, text = (name and embedder(name, device=args.device) for name in (args.embedder, args.text))
    table = score_images(args.dir, embed=embed, reference=args.reference, text=text)
    print(table.to_string(index=False, na_rep="", float_format="{:.4g}".format))
    units = dict.fromkeys(("value", "low", "high"), "see measure")
    print(tables.save(table, f"{args.dir}/score.csv", units=units))


def _value(text: str) -> object:
    """Return a parameter as typed: a Python literal, or else the text itself."""
    with suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dtviz", description="Record and measure what diffusion models predict.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    figures = commands.add_parser("figures", help="run the notebooks that make the figures and tables")
    figures.set_defaults(command=_figures)
    figures.add_argument("--pair", default="emoji-dmd", metavar="NAME", help="models to show (default: %(default)s)")
    figures.add_argument("--only", metavar="NAMES", help="notebooks to run: fig5,table3 (default: all)")
    figures.add_argument("--jobs", type=int, metavar="N", help="notebooks at a time (default: by cores; hub pairs: 1)")
    figures.add_argument("--profile", choices=paper.PROFILES, default="quick", help="how many seeds and prompts")
    figures.add_argument("--out", metavar="DIR", help="folder (default: figures/NAME, quick: figures/NAME/quick)")
    repeated = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    figures.add_argument("-p", "--parameter", **repeated, help="a parameter of every notebook; may be repeated")

    pairs = commands.add_parser("pairs", help="list the pairs of models")
    pairs.set_defaults(command=lambda _: print(registry.pairs().to_string()))

    job = commands.add_parser("generate", help="generate one image per row of a prompts file; run again to go on")
    job.set_defaults(command=_generate)
    job.add_argument("--pair", default="emoji-dmd", metavar="NAME", help="models (default: %(default)s)")
    job.add_argument("--method", default="hybrid", help="base, distilled, hybrid or skip (default: %(default)s)")
    job.add_argument("--prompts", required=True, metavar="CSV", help="columns case_number, prompt, evaluation_seed")
    job.add_argument("--out", required=True, metavar="DIR", help="folder of the images, shared by all processes")
    for name, (kind, text) in _SETTINGS.items():
        option = f"--{name.replace('_', '-')}"
        job.add_argument(option, type=kind, default=argparse.SUPPRESS, help=f"{text} (default: as generate)")
    job.add_argument("--batch-size", type=int, metavar="N", help="images generated together (default: the pair's)")
    job.add_argument("--device", help="torch device (default: this process's GPU, or the CPU)")

    rate = commands.add_parser("score", help="score a folder of images against real ones and its prompts")
    rate.set_defaults(command=_score)
    rate.add_argument("dir", metavar="DIR", help="a folder that `generate` made, or any folder of images")
    rate.add_argument("--reference", metavar="DIR", help="a folder of real images, or one that `generate` made")
    rate.add_argument("--embedder", default="inception", metavar="NAME", help="network (default: %(default)s)")
    rate.add_argument("--text", metavar="NAME", help="a CLIP for the prompts: clip:<hub id or folder>, emoji-clip")
    rate.add_argument("--device", help="torch device (default: the GPU, or the CPU)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
