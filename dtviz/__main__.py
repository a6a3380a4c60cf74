"""Command line: `python -m dtviz figures` makes the figures, `python -m dtviz pairs` lists the pairs.

Exit status: 0; 1 when a notebook failed; 2 for bad input, said in one line on stderr; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import ast
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
    except figures.NotebookError as error:
        print(f"dtviz: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print("dtviz:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dtviz: interrupted", file=sys.stderr)
        return 130
    return 0


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


def _value(text: str) -> object:
    """A parameter as typed on the command line: a Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dtviz", description="See what a diffusion model thinks at every step.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    make = commands.add_parser("figures", help="run the notebooks that make the figures and tables")
    make.set_defaults(command=_figures)
    make.add_argument("--pair", default="emoji-dmd", metavar="NAME", help="models to show (default: %(default)s)")
    make.add_argument("--only", metavar="NAMES", help="notebooks to run, comma-separated: fig5,table3 (default: all)")
    make.add_argument("--jobs", type=int, metavar="N", help="notebooks at once (default: one for every four cores)")
    make.add_argument("--profile", choices=figures.PROFILES, default="quick", help="how many seeds and prompts")
    make.add_argument("--out", metavar="DIR", help="folder for the results (default: figures/NAME)")
    make.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter for every notebook that runs, as in papermill; may be repeated",
    )  # fmt: skip

    commands.add_parser("pairs", help="list the pairs of models").set_defaults(command=_pairs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
