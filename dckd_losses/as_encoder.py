"""Whatever users call an encoder, as one."""

from __future__ import annotations

import copy
from os import PathLike

from torch import nn

from dckd_losses.encoder import VQGANEncoder
from dckd_losses.features import FeatureEncoder, FrozenEncoder
from dckd_losses.network import VQGANNetwork


def as_encoder(encoder: str | PathLike[str] | nn.Module) -> FeatureEncoder:
    """The encoder that a loss was given: a name, a path, an encoder or any other module.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(encoder, FeatureEncoder):
        return encoder
    if isinstance(encoder, VQGANNetwork):
        return VQGANEncoder(copy.deepcopy(encoder))
    if isinstance(encoder, nn.Module):
        return FrozenEncoder(encoder)
    if isinstance(encoder, (str, PathLike)):
        return VQGANEncoder.from_pretrained(encoder)
    raise ValueError(f"encoder must be a name, a path or a module, got {type(encoder).__name__}")
