"""The command line: ``main`` parses and dispatches, every subcommand is a module.

Such a module has ``add_parser(commands)``, which adds its parser and sets ``run(args)`` as what to do. A new
subcommand is a new module and its name in ``COMMANDS``.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import cylsm
from cylsm._cli import accuracy, bench, demo, score
from cylsm._cli._errors import InputError

COMMANDS = (score, accuracy, bench)

EXIT_ERROR = 2
EXIT_INTERRUPTED = 128 + 2
EXIT_BROKEN_PIPE = 128 + 13


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `argv` and return its exit status."""
    try:
        try:
            return _dispatch(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # as in `python -m cylsm | head -1`: the reader has had enough
        _discard(sys.stdout.fileno(), sys.stderr.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        _discard(sys.stdout.fileno())
        return _fail("cylsm", f"cannot write to standard output: {error.strerror}")


def _dispatch(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    name = f"cylsm {args.command}" if args.command else "cylsm"
    try:
        args.run(args)
    except InputError as error:
        return _fail(name, str(error))
    except MemoryError:
        return _fail(name, "not enough memory")
    except KeyboardInterrupt:
        _fail(name, "interrupted")
        return EXIT_INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cylsm",
        description="Log-softmax and cross-entropy over NumPy arrays. Without a command: train a classifier "
        "of handwritten digits with cylsm, then time it beside the usual NumPy formula. No file is written.",
    )
    parser.add_argument("--version", action="version", version=f"cylsm {cylsm.__version__}")
    parser.set_defaults(run=demo.run)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def _fail(name: str, message: str) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return EXIT_ERROR


def _discard(*descriptors: int) -> None:
    # What is still buffered would fail again when the interpreter exits.
    devnull = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(devnull, descriptor)
