"""Networks of the user's own code: `package.module:callable` or `file.py:callable`."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

WRAPPERS = ("module.", "model.", "net_g.", "_orig_mod.")  # of DDP, Lightning, BasicSR, compile
SCALES = ("scale", "upscale")
FACTS: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()  # how each was made
PROBE = 64  # pixels a side: the windows and halvings of common networks fit


def is_own(name: str) -> bool:
    """Whether a network's name is a place in code."""
    return ":" in name and "://" not in name


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs; values are Python's, or text where they are not.

    Raises:
        ValueError: One is written otherwise.
    """
    found: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not (equals and key.isidentifier()):
            raise ValueError(f"got {option!r} after a network; expected key=value")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def build_own(name: str, scale: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Call the user's code for a network, (B, 3, H, W) in [0, 1] to `scale` times that size.

    Args:
        name: `package.module:callable`, or `file.py:callable`, from the working directory.
        scale: Passed on where the callable takes a `scale` or, as BasicSR's, an `upscale`.
        options: Further arguments, by name.

    Raises:
        ValueError: The code cannot be found or run, or makes something else.
    """
    place, _, attribute = name.rpartition(":")
    known = dict(options or {})
    try:
        make = getattr(_module(place), attribute, None)
        if make is None:
            raise AttributeError(f"there is no {attribute}")
        takes = inspect.signature(make).parameters
        named = next((word for word in SCALES if word in takes), None)
        if named is not None:
            known.setdefault(named, scale)
        model = make(**known)
    except Exception as error:  # the user's code may raise anything
        raise ValueError(f"{name}: no network can be made: {_said(error)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name}: got {type(model).__name__}; expected a torch.nn.Module")
    check_output(model, name, scale)
    if path := _file(place):
        name, code = f"{path}:{attribute}", hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        code = ""
    said = [f"{key}={value!r}" for key, value in (options or {}).items()]
    FACTS[model] = {
        "backbone": name, "scale": str(scale), "options": json.dumps(said), "code_sha256": code,
    }  # fmt: skip
    return model


def recall(facts: Mapping[str, str]) -> nn.Module:
    """Build the network that a file remembers, by code that was used when the file was written.

    A file may name any code. So a file of code has to be the one that was there, byte for byte, and
    of a module only a network's class is called.

    Raises:
        ValueError: The code is another now, cannot be run, or is no such class.
    """
    name = facts["backbone"]
    place, _, attribute = name.rpartition(":")
    if path := _file(place):
        code = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(code).hexdigest() != facts.get("code_sha256"):
            raise ValueError(f"its network's code, {path}, is gone or has changed: name the code")
    else:
        try:
            made = getattr(_module(place), attribute)
        except Exception as error:
            raise ValueError(f"its network's code, {name}, is not there: {_said(error)}") from error
        if not (isinstance(made, type) and issubclass(made, nn.Module)):
            raise ValueError(f"its network's code, {name}, is no torch.nn.Module: name the code")
    return build_own(name, int(facts["scale"]), parse_options(json.loads(facts["options"])))


def _file(place: str) -> Path | None:
    return Path(place).resolve() if place.endswith(".py") else None


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)  # as `python -m` has it
        return importlib.import_module(place)
    path = Path(place).resolve()
    name = f"own_network_{path.stem}_{abs(hash(path))}"
    if name not in sys.modules:
        if not path.is_file():
            raise FileNotFoundError(f"{place}: no such file")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickles look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


@torch.no_grad()
def check_output(model: nn.Module, name: str, scale: int) -> None:
    """Require of a network that it makes one RGB image of an RGB image, `scale` times as large.

    Raises:
        ValueError: It does not; says what it makes.
    """
    expected = (1, 3, PROBE * scale, PROBE * scale)
    weight = next(model.parameters(), torch.zeros(()))
    training = [module for module in model.modules() if module.training]
    model.eval()
    image = torch.full((1, 3, PROBE, PROBE), 0.5).to(weight)
    try:
        out = model(image)
    except Exception as error:
        raise ValueError(f"{name}: it does not take (1, 3, H, W): {_said(error)}") from error
    finally:
        for module in training:
            module.training = True
    if not isinstance(out, Tensor):
        raise ValueError(
            f"{name}: it returns {type(out).__name__}; expected one image: name a callable whose "
            "network returns the image only"
        )
    if not (image == 0.5).all():
        raise ValueError(f"{name}: it writes into its input, which the losses see too: copy it")
    if tuple(out.shape) != expected:
        raise ValueError(
            f"{name}: it makes {tuple(out.shape)} of (1, 3, {PROBE}, {PROBE}); expected {expected} "
            f"for x{scale}"
        )


def fill(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a network, whatever wrapper stood around it when they were saved.

    Raises:
        ValueError: They are another network's; names the first difference.
    """
    wanted = model.state_dict()
    found = dict(tensors)
    while found and not found.keys() >= wanted.keys():
        inner = next((w for w in WRAPPERS if any(name.startswith(w) for name in found)), None)
        if inner is None:
            break
        found = {n.removeprefix(inner): t for n, t in found.items() if n.startswith(inner)}
    for name, tensor in wanted.items():
        shape = tuple(found[name].shape) if name in found else "none"
        if shape != tuple(tensor.shape):
            raise ValueError(
                f"{source} does not fit the network: {name} is {shape} in the file and "
                f"{tuple(tensor.shape)} in the network"
            )
    model.load_state_dict({name: found[name] for name in wanted})


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
