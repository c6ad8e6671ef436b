"""Networks of the user's own code: `package.module:callable` or `file.py:callable`."""

import ast
import copy
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

SCALES = ("scale", "upscale")
FACTS: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()  # how each was made
COUNTERS = ("total_ops", "total_params")  # which thop leaves in a network it has measured
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

    The scale is passed on where the callable takes a `scale` or, as BasicSR's, an `upscale`.

    Raises:
        ValueError: The code cannot be found or run, or makes something else.
    """
    place, _, attribute = name.rpartition(":")
    known = dict(options or {})
    try:
        make = getattr(_module(place), attribute, None)
        if make is None:
            raise AttributeError(f"there is no {attribute} in {place}")
        takes = inspect.signature(make).parameters
        named = next((word for word in SCALES if word in takes), None)
        if named is not None:
            known.setdefault(named, scale)
        model = make(**known)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ValueError(f"{name}: no network can be made: {said(error)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name}: got {type(model).__name__}; expected a torch.nn.Module")
    check_output(model, name, scale)
    code = ""
    if path := _file(place):
        name, code = f"{path}:{attribute}", hashlib.sha256(path.read_bytes()).hexdigest()
    text = json.dumps([f"{key}={value!r}" for key, value in (options or {}).items()])
    FACTS[model] = {"backbone": name, "scale": str(scale), "options": text, "code_sha256": code}
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
        except (Exception, SystemExit) as error:
            raise ValueError(f"its network's code, {name}, is not there: {said(error)}") from error
        if not (isinstance(made, type) and issubclass(made, nn.Module)):
            raise ValueError(f"its network's code, {name}, is no torch.nn.Module: name the code")
    return build_own(name, int(facts["scale"]), parse_options(json.loads(facts["options"])))


def _file(place: str) -> Path | None:
    return Path(place).resolve() if place.endswith(".py") else None


def _module(place: str) -> ModuleType:
    path = _file(place)
    here = str(path.parent if path else Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # as `python file.py` and `python -m module` have it
    if path is None:
        return importlib.import_module(place)
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


def check_crops(model: nn.Module, sides: Iterable[int], *, trained: bool) -> None:
    """Require of a network of the user's code that it takes a run's crops; raises ValueError.

    A network that is to be trained is copied, so that it stays as it is.
    """
    facts = FACTS.get(model)
    if facts is None:
        return
    name, scale = facts["backbone"], int(facts["scale"])
    for side in set(sides):
        with torch.random.fork_rng():
            probed = copy.deepcopy(model) if trained else model
            check_output(probed, name, scale, side, trained=trained)


def check_output(
    model: nn.Module, name: str, scale: int, side: int = PROBE, *, trained: bool = False
) -> None:
    """Require of a network that it makes one RGB image of an RGB image, `scale` times as large.

    The image has `side` pixels a side. It is tried in eval mode, or as in training, with gradient;
    its modes are put back.

    Raises:
        ValueError: It does not; says what it makes, and what to do.
    """
    training = [module for module in model.modules() if module.training]
    device = next(model.parameters(), torch.zeros(())).device
    image = torch.full((1, 3, side, side), 0.5, device=device)
    try:
        with torch.set_grad_enabled(trained):
            out = model.train(trained)(image)
    except Exception as error:
        kinds = {str(weight.dtype) for weight in model.parameters()} - {"torch.float32"}
        seen = f", its weights are {kinds.pop()}" if kinds else ""
        todo = "name a callable that makes a network of RGB images"
        if side != PROBE:
            todo = "choose another --crop, or let the network pad its input"
        raise ValueError(
            f"{name}: it does not take float32 {tuple(image.shape)}"
            f"{' in training' * trained}{seen}: {said(error)}: {todo}"
        ) from error
    finally:
        model.eval()
        for module in training:
            module.training = True
    if not isinstance(out, Tensor):
        raise ValueError(
            f"{name}: it returns {type(out).__name__}{' in training' * trained}; expected one "
            "image: name a callable whose network returns the image only"
        )
    if not (image == 0.5).all():
        raise ValueError(f"{name}: it writes into its input, which the losses see too: copy it")
    if trained and not out.requires_grad:
        raise ValueError(f"{name}: its output has no gradient; expected weights to be trained")
    expected = (1, 3, side * scale, side * scale)
    if (tuple(out.shape), out.dtype) != (expected, torch.float32):
        raise ValueError(
            f"{name}: it makes {out.dtype} {tuple(out.shape)} of {tuple(image.shape)}; expected "
            f"torch.float32 {expected} for x{scale}"
        )


def fill(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    expected: str = "the network",
    *,
    buffers: bool = True,
) -> None:
    """Load the weights of exactly this network, under any prefix: of DDP, Lightning, a trainer.

    There may be other modules' under other prefixes. `source` and `expected` say in messages where
    they are from and what the network is. Buffers may be left as they are.

    Raises:
        ValueError: They are another network's, with the first difference, or several fit.
    """
    tensors = {n: t for n, t in tensors.items() if n.rpartition(".")[2] not in COUNTERS}
    left = set() if buffers else {name for name, _ in model.named_buffers()}
    wanted = {n: tuple(t.shape) for n, t in model.state_dict().items() if n not in left}
    below: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)  # shapes by prefix
    for name, tensor in tensors.items():
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            if name[start:] not in left:
                below[name[:start]][name[start:]] = tuple(tensor.shape)
    prefixes = [prefix for prefix, found in below.items() if found.keys() & wanted.keys()] or [""]
    prefixes.sort(key=lambda prefix: (prefix.count("."), prefix))
    shapes = {prefix: below[prefix] for prefix in prefixes}
    fitting = [prefix for prefix, found in shapes.items() if found == wanted]
    if not fitting:
        found = max(shapes.values(), key=lambda found: len(found.items() & wanted.items()))
        odd = min(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        sizes = [sum(map(math.prod, shapes.values())) for shapes in (found, wanted)]
        there, here = (shapes.get(odd, "none") for shapes in (found, wanted))
        raise ValueError(
            f"{source} holds another network, of {sizes[0]:,} values; expected {expected}, "
            f"{sizes[1]:,} values ({odd}: {there} there, {here} here)"
        )
    if len(fitting) > 1 and fitting[0].count(".") == fitting[1].count("."):
        raise ValueError(
            f"{source} holds {fitting[0]}* and {fitting[1]}*, both of which fit; expected a file "
            "with one of them"
        )
    weights = {name: tensors[fitting[0] + name] for name in wanted}
    model.load_state_dict(weights, strict=buffers)


def said(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
