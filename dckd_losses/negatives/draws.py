"""Random numbers as a pure function of (seed, rank, counter, element index).

No generator state exists: the global generators stay untouched, a run resumes exactly from one
integer, ranks differ by construction, and CPU and CUDA draw the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, distributed

# splitmix64 (Steele, Lea and Flood 2014), in int64 arithmetic that wraps
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_GAMMA_INVERSE = 0xF1DE83E19937733D - (1 << 64)  # modulo 2^64
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_MANTISSA = 24  # bits of a float32 in [0, 1)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; int64's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


class Draws:
    """The random numbers of one call; each method call draws from a stream of its own.

    Args:
        seed: any int.
        rank: the process's rank; other ranks draw other numbers.
        counter: which call this is, an int64 tensor of one element; its device is where numbers
            are made, and it is read there without synchronisation.

    Example:
        >>> draws = Draws(0, 0, torch.tensor(7))
        >>> bool((draws.uniform(3) == Draws(0, 0, torch.tensor(7)).uniform(3)).all())
        True
    """

    def __init__(self, seed: int, rank: int, counter: Tensor) -> None:
        key = torch.full_like(counter, seed % (1 << 63))
        for part in (rank, counter):
            key = _mix(key + _GAMMA) ^ part
        self._key = _mix(key + _GAMMA)
        self._streams = 0

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers in [low, high), float32."""
        self._streams += 1
        key = _mix(self._key ^ self._streams)
        index = torch.arange(1, math.prod(shape) + 1, device=key.device)
        # key + index * gamma, but torch.compile would take a product of an index for an address
        state = (key * _GAMMA_INVERSE + index) * _GAMMA
        bits = _shift_right(_mix(state), 64 - _MANTISSA)
        unit = (bits.to(torch.float32) * 2.0**-_MANTISSA).view(shape)
        return low + (high - low) * unit

    def integers(self, high: int, *shape: int) -> Tensor:
        """Whole numbers in [0, high), int64."""
        return (self.uniform(*shape) * high).long()

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32 (Box and Muller 1958)."""
        radius = (-2 * torch.log1p(-self.uniform(*shape))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(*shape))


def process_rank() -> int:
    """This process's rank; 0 where nothing is distributed."""
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_rank() if ready else 0
