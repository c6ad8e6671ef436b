"""A student as ONNX, for deployment: run beside the student before it is written."""

import copy
import io
import logging
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ..training.checkpoint import write_whole

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SIZES = ((2, 3, 64, 64), (3, 3, 48, 80))  # two, so that a fixed size is noticed
ODD_SIZE = (1, 3, 37, 53)  # compared, too, if the network takes it
TOLERANCE = 1e-5  # of values in [0, 1]; of larger ones in proportion

Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a module


def check() -> None:
    """Require the packages of an export; ValueError names those that are missing."""
    if missing := " ".join(name for name in PACKAGES if find_spec(name) is None):
        raise ValueError(f"--export onnx: {missing} not installed; run pip install {missing}")


def export_onnx(model: nn.Module, path: Path) -> float:
    """Write a network as ONNX for any number of images of any size, if it computes the same.

    The file's input `lq` is float32, (B, 3, H, W) in [0, 1]; its output is `restored`.

    Returns:
        The largest difference between onnxruntime's output and torch's.

    Raises:
        ValueError: A layer cannot be exported or computes something else then; names it. No file
            is written.
    """
    model = copy.deepcopy(model).cpu().float().eval()
    for module in model.modules():
        vars(module).pop("forward", None)  # of gradient checkpointing
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(size, generator=generator) for size in (*SIZES, ODD_SIZE)]
    with _quietly():
        try:
            model(images[-1].clone())
        except Exception:  # a window does not divide it
            images.pop()
        calls: list[Call] = [((image,), {}) for image in images]
        try:
            data, difference = _converted(model, calls)
        except Exception as error:  # the exporter and onnxruntime raise many kinds
            layer, reason = _culprit(model, calls[:2], error)
            said = textwrap.shorten(str(reason.__cause__ or reason), 140, placeholder=" ...")
            raise ValueError(
                f"--export onnx: {layer} cannot be exported, all else is written; change that "
                f"layer, or leave --export out: {said or type(reason).__name__}"
            ) from error
    write_whole(path, data)
    return difference


@contextmanager
def _quietly() -> Iterator[None]:
    """Without gradients, and without what the exporter says on its way."""
    nowhere = io.StringIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
        finally:
            logging.disable(logging.NOTSET)


def _converted(module: nn.Module, calls: Sequence[Call]) -> tuple[bytes, float]:
    """A module's ONNX file, and the largest difference between its outputs and the module's."""
    import onnxruntime

    args, kwargs = calls[0]
    sizes = _pytree.tree_map(_any_size, (*args, *kwargs.values()))
    traced = torch.export.export(module, args, kwargs, dynamic_shapes=sizes, strict=False)
    names = {"input_names": ["lq"], "output_names": ["restored"]}
    program = torch.onnx.export(traced, dynamo=True, verbose=False, **names)
    assert program is not None
    data = program.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for call in calls:
        tensors = zip(session.get_inputs(), _tensors(call), strict=True)
        seen = session.run(None, {each.name: tensor.numpy() for each, tensor in tensors})
        args, kwargs = copy.deepcopy(call)  # the module may write into them
        for one, other in zip(seen, _tensors(module(*args, **kwargs)), strict=True):
            difference = (torch.from_numpy(one) - other).abs().max().item()
            if not difference < TOLERANCE * max(1, other.abs().max().item()):
                raise ValueError(f"its output is another in ONNX, by {difference:.1e}")
            largest = max(largest, difference)
    return data, largest


def _any_size(value: Any) -> dict[int, Any] | None:
    """All sizes of a tensor may vary, unless the code that uses it fixes them."""
    tensor = isinstance(value, Tensor)
    return dict.fromkeys(range(value.ndim), torch.export.Dim.AUTO) if tensor else None


def _tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(nested) if isinstance(leaf, Tensor)]


def _culprit(model: nn.Module, calls: Sequence[Call], error: Exception) -> tuple[str, Exception]:
    """The smallest part that cannot be exported alone, and why."""
    culprit, prefix, good = model, "", []
    for name, module in model.named_modules():  # a module comes before its parts
        if not name or not name.startswith(prefix) or name.startswith(tuple(good)):
            continue
        its_calls = [_first_call(model, call, module) for call in calls]
        if not all(its_calls):  # a list of modules, or one that does not run
            continue
        try:
            _converted(module, its_calls)
            good.append(f"{name}.")
        except Exception as reason:
            culprit, prefix, error = module, f"{name}.", reason
    return f"{prefix[:-1] or 'the network'} ({type(culprit).__name__})", error


def _first_call(model: nn.Module, call: Call, module: nn.Module) -> Call:
    """What a module is called with first while the network runs; empty where it is not."""
    seen: list[Any] = []

    def remember(module: nn.Module, *called: Any) -> None:
        if not seen:
            seen.extend(copy.deepcopy(called))

    hook = module.register_forward_pre_hook(remember, with_kwargs=True)
    model(*call[0], **call[1])
    hook.remove()
    return tuple(seen)
