"""`python -m dckd_losses.weights`: list, fetch, convert, verify and describe weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dckd_losses.weights import COMPACT, NAMES, SOURCES, convert, fetch, place
from dckd_losses.weights.description import describe, verify
from dckd_losses.weights.download import recorded


def _list(args: argparse.Namespace) -> list[str]:
    lines = [f"compact: embedded, {COMPACT}"]
    for name, source in SOURCES.items():
        path = place(name)
        state = "here" if path.is_file() else "not fetched yet; belongs to"
        known = source.sha256 or recorded(name)
        origin = "published" if source.sha256 else "recorded by the first fetch"
        lines += [
            f"{name}: {state} {path}",
            f"  complete checkpoint, {source.size}, at {source.url}",
            *(f"  also at {url}" for url in source.elsewhere),
            f"  sha256 {known}, {origin}" if known else "  sha256 not published",
        ]
    return lines


def _fetch(args: argparse.Namespace) -> list[str]:
    if args.name not in SOURCES:
        place(args.name)  # which knows the names
        return [f"compact is embedded, nothing to fetch: {COMPACT}"]
    return _verified(fetch(args.name, delete_original=args.delete_original))


def _convert(args: argparse.Namespace) -> list[str]:
    convert(args.checkpoint, args.output)
    return describe(args.output)


def _verify(args: argparse.Namespace) -> list[str]:
    return _verified(args.file)


def _verified(path: Path) -> list[str]:
    return [f"{path}: good", *(f"  {line}" for line in verify(path))]


def _info(args: argparse.Namespace) -> list[str]:
    return describe(args.file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dckd_losses.weights", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., list[str]], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add("list", _list, "the names, where their weights are, and where they can be had")
    command = add("fetch", _fetch, "fetch named weights and keep their encoder in DCKD_HOME")
    command.add_argument("name", metavar="NAME", help=", ".join(NAMES))
    command.add_argument(
        "--delete-original",
        action="store_true",
        help="remove the complete checkpoint from the Hugging Face Hub's cache",
    )
    command = add("convert", _convert, "keep the encoder of a taming-transformers checkpoint")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="such as last.ckpt")
    command.add_argument("output", type=Path, metavar="OUTPUT", help="such as encoder.safetensors")
    command = add("verify", _verify, "hold a file against all that is known of it")
    command.add_argument("file", type=Path, metavar="FILE")
    command = add("info", _info, "say what is in a file")
    command.add_argument("file", type=Path, metavar="FILE")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 1 after an error that was told in one line."""
    args = _parser().parse_args(arguments)
    try:
        lines = args.run(args)
    except (RuntimeError, ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
