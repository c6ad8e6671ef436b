"""A run's options as a YAML file, named as on the command line."""

import argparse
import difflib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from .training.checkpoint import write_whole
from .training.console import RefusedError

APART = ("help", "config", "resume")  # not written: a run is not repeated by them


class _Text(yaml.SafeLoader):
    """Reads all values as text, as a command line does; nothing and `null` are None."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in known if tag.endswith(":null")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is there twice")
        return super().construct_mapping(node, deep)


def read(path: Path, parser: argparse.ArgumentParser, but: Collection[str] = ()) -> list[str]:
    """The command line that a file of options stands for.

    Args:
        path: YAML; an option of several values has a list.
        parser: Of the options; used up, as its errors name the file from now on.
        but: Attributes whose options are left out.

    Raises:
        RefusedError: The file is missing or no YAML, or an option is unknown or not of its type.
    """

    def refuse(said: str) -> NoReturn:
        raise RefusedError(f"{path}: {said}")

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Text)
    except OSError as error:
        refuse(str(error.strerror))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        refuse(f"not YAML: {' '.join(str(error).split())}")
    if not isinstance(content, dict | None):
        refuse(f"got a {type(content).__name__}; expected lines of `option: value`")
    actions = _actions(parser)
    line = []
    for name, value in (content or {}).items():
        if name not in actions:
            like = difflib.get_close_matches(str(name).replace("_", "-"), actions, 1)
            known = f"did you mean {like[0]}?" if like else f"expected some of {', '.join(actions)}"
            refuse(f"unknown option {name!r}; {known}")
        if value is not None and actions[name].dest not in but:
            try:
                line += _words(actions[name], value)
            except ValueError as error:
                refuse(f"{name}: {error}")
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(line)
    return line


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Options by the name that a file has for them."""
    known = {action.option_strings[-1].removeprefix("--"): action for action in parser._actions}
    return {name: action for name, action in known.items() if action.dest not in APART}


def _words(action: argparse.Action, value: Any) -> list[str]:
    """An option as words of a command line."""
    option, several = action.option_strings[-1], action.nargs == "+"
    repeats = isinstance(action, argparse._AppendAction)
    if action.nargs == 0:
        if value not in ("true", "false"):
            raise ValueError(f"got {value!r}; expected true or false")
        return [option] * (value == "true")
    values = value if isinstance(value, list) and (several or repeats) else [value]
    for each in values:
        if not isinstance(each, str):
            expected = "a value or a list of them" if several or repeats else "one value"
            raise ValueError(f"got {each!r}; expected {expected}")
        try:
            named = b"\0" not in os.fsencode(each)
        except UnicodeEncodeError:
            named = False
        if not named:
            raise ValueError(f"got {each!r}; expected text that names of files can have")
    if several:
        return [option, *values] if values else []
    return [f"{option}={each}" for each in values]


def options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Any]:
    """What was chosen, for `write`."""
    return {name: getattr(args, action.dest) for name, action in _actions(parser).items()}


def write(path: Path, command: str, options: dict[str, Any]) -> None:
    """Write a file from which `read` gives these options.

    Args:
        path: What it held before stays until the new one is complete.
        command: Reads these options; named in the first line.
        options: By name: numbers, text, paths, true or false, lists of them, or None.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        return str(value) if isinstance(value, Path) else value

    known = {name: plain(value) for name, value in options.items()}
    text = yaml.safe_dump(known, sort_keys=False, allow_unicode=True)
    write_whole(path, f"# {command} --config {path}\n{text}".encode())
