"""Calls that torch.compile must not record, for it would not record the fused path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _fused_breaks_the_graph(function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """What torch.compile's message of one graph names."""
    return function(*args, **settings)


unrecorded = torch.compiler.disable(_fused_breaks_the_graph)  # type: ignore[no-untyped-call]
