"""The frozen encoder: features of five levels, code logits, and a step's images compared."""

from __future__ import annotations

import copy
from os import PathLike

from torch import nn

from dckd_losses.encoder.base import Comparison, Encoding, FeatureEncoder
from dckd_losses.encoder.vqgan import VQGANEncoder
from dckd_losses.network import VQGANNetwork

__all__ = ["Comparison", "Encoding", "FeatureEncoder", "VQGANEncoder", "as_encoder"]


def as_encoder(encoder: str | PathLike[str] | nn.Module) -> FeatureEncoder:
    """Resolve a name, path or module to an encoder.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(encoder, FeatureEncoder):
        return encoder
    if isinstance(encoder, VQGANNetwork):
        return VQGANEncoder(copy.deepcopy(encoder))
    if isinstance(encoder, nn.Module):
        return FeatureEncoder(copy.deepcopy(encoder))  # the caller's stays trainable
    if isinstance(encoder, (str, PathLike)):
        return VQGANEncoder.from_pretrained(encoder)
    raise ValueError(f"encoder must be a name, a path or a module, got {type(encoder).__name__}")
