"""Calls that torch.compile must not record, for it would not record the fused path.

Import it where it is needed only: it imports torch.compile's whole machinery.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def unrecorded(function: Callable[..., Result], *args: Any, **settings: Any) -> Result:
    """Call a function as it is, where the graph that is being recorded breaks."""
    result: Result = _disabled(function, *args, **settings)
    return result


def _fused_breaks_the_graph(function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """What torch.compile names where it was told to make one graph."""
    return function(*args, **settings)


_disabled = torch.compiler.disable(_fused_breaks_the_graph)  # type: ignore[no-untyped-call]
