"""`python -m dckd_losses.weights`: list, fetch, convert, verify and describe weights."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dckd_losses.network import LEVELS
from dckd_losses.weights.files import COMPACT, DIGEST, file_sha256, load_with_metadata
from dckd_losses.weights.registry import (
    NAMES,
    ORIGINAL,
    SOURCES,
    architecture_of,
    check_architecture,
    convert,
    fetch,
    local_path,
    recorded,
)


def describe(path: Path) -> list[str]:
    """The architecture, as read off the tensors, and whatever else the file says of itself.

    Raises:
        RuntimeError: the file is missing, cut short, altered or no such encoder; names it.
    """
    tensors, metadata = load_with_metadata(path)
    a = architecture_of(tensors, path)
    attention = [str(level + 1) for level in range(LEVELS) if a.attention[level]]
    return [
        f"file          {path}, {path.stat().st_size:,} bytes",
        f"sha256        {file_sha256(path)}",
        f"levels        {LEVELS} of {', '.join(map(str, a.channels))} channels, stem {a.stem}",
        f"blocks        {a.blocks} a level",
        f"attention     on level {', '.join(attention) or '-'} and in the middle",
        f"codes         {a.codes} of {a.code_channels} channels, from {a.z_channels} latent ones",
        f"parameters    {sum(tensor.numel() for tensor in tensors.values()):,}",
        *(f"metadata      {key}: {value}" for key, value in sorted(metadata.items())),
    ]


def verify(path: Path) -> list[str]:
    """Hold a file against all that is known of it: what it holds, what it says, what it is called.

    Returns:
        What was found to be as it should.

    Raises:
        RuntimeError: something is not; names the file.
    """
    tensors, metadata = load_with_metadata(path)
    a = architecture_of(tensors, path)
    found = [f"a complete encoder with {a.codes} codes, each tensor of its exact shape"]
    name = path.stem
    if path.suffix != ".safetensors":
        seen = file_sha256(path)
        known = [n for n, source in SOURCES.items() if source.sha256 == seen]
        return [*found, f"sha256 {seen}, {known[0] if known else 'not one that is published'}"]
    if DIGEST in metadata:
        found.append(f"tensors as they were written, sha256 {metadata[DIGEST]}")
    else:
        found.append("without a digest: what wrote it left nothing to tell an alteration by")
    if name in SOURCES:
        check_architecture(name, a, path)
        found.append(f"the architecture of {name}")
        expected, original = SOURCES[name].sha256 or recorded(name), metadata.get(ORIGINAL)
        if None not in (expected, original):
            if expected != original:
                raise RuntimeError(
                    f"{path} was made from a checkpoint with sha256 {original}; that of {name} is "
                    f"{expected}"
                )
            found.append(f"made from the checkpoint of {name}, sha256 {expected}")
    return found


def _path(name_or_file: str) -> Path:
    """The file of a name that `list` shows, or the file itself."""
    path = local_path(name_or_file) if name_or_file in NAMES else Path(name_or_file)
    if name_or_file in SOURCES and not path.is_file():
        raise RuntimeError(f"{path}: no such file; 'fetch {name_or_file}' makes it")
    return path


def _list(args: argparse.Namespace) -> list[str]:
    lines = [f"compact: embedded, {COMPACT}"]
    for name, source in SOURCES.items():
        path = local_path(name)
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
        local_path(args.name)  # which knows the names
        return [f"compact is embedded, nothing to fetch: {COMPACT}"]
    return _verified(fetch(args.name, delete_original=args.delete_original))


def _convert(args: argparse.Namespace) -> list[str]:
    convert(args.checkpoint, args.output)
    return describe(args.output)


def _verify(args: argparse.Namespace) -> list[str]:
    return _verified(_path(args.file))


def _verified(path: Path) -> list[str]:
    return [f"{path}: good", *(f"  {line}" for line in verify(path))]


def _info(args: argparse.Namespace) -> list[str]:
    return describe(_path(args.file))


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
    command.add_argument("file", metavar="NAME_OR_FILE", help=f"{', '.join(NAMES)}, or a path")
    command = add("info", _info, "say what is in a file")
    command.add_argument("file", metavar="NAME_OR_FILE", help=f"{', '.join(NAMES)}, or a path")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 1 after an error that was told in one line."""
    args, out = _parser().parse_args(arguments), sys.stdout
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")  # for names beyond the terminal's encoding
    try:
        print("\n".join(args.run(args)), flush=True)
        return 0
    except KeyboardInterrupt:
        said, status = "stopped", 130
    except (RuntimeError, ValueError, OSError) as error:
        said, status = f"error: {' '.join(str(error).split())}", 1
    print(said, file=sys.stderr)
    try:
        print(end="", flush=True)
    except OSError:  # nobody reads, or the disk is full; Python would try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
    return status


if __name__ == "__main__":
    sys.exit(main())
