"""Negatives: what the student's past self makes of degraded inputs (Eq. 4)."""

from dckd_losses.negatives.degradations import (
    DEGRADATIONS,
    Degradation,
    RandomBlur,
    RandomMix,
    RandomNoise,
    RandomResize,
)
from dckd_losses.negatives.generator import NUM_NEGATIVES, NegativeGenerator

__all__ = [
    "DEGRADATIONS",
    "NUM_NEGATIVES",
    "Degradation",
    "NegativeGenerator",
    "RandomBlur",
    "RandomMix",
    "RandomNoise",
    "RandomResize",
]
