"""The invertible transforms of DUKD's label consistency (Zhang et al., arXiv 2309.14162)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dckd_losses.draws import Draws


class Transform:
    """Colours inverted, rows and columns reversed, axes swapped: F, each image's own.

    The inverse takes the four back in the opposite order. DUKD's released code takes them back in
    another, which is wrong wherever a transposed image is flipped along one axis only; DCKD's is
    right.

    Args:
        inverted: which images x become 1 - x, bool, (B,).
        rows: which images are flipped upside down.
        columns: which images are mirrored.
        transposed: which images have rows and columns swapped; of images that are not square all
            or none, as one tensor holds one shape.

    Example:
        >>> one = torch.ones(1, dtype=torch.bool)
        >>> transform = Transform(one, ~one, one, one)
        >>> images = torch.arange(6.0).view(1, 1, 2, 3)
        >>> bool((transform.undo(transform(images)) == images).all())
        True
    """

    def __init__(self, inverted: Tensor, rows: Tensor, columns: Tensor, transposed: Tensor) -> None:
        self.inverted, self.rows, self.columns, self.transposed = (
            flags.view(-1, 1, 1, 1) for flags in (inverted, rows, columns, transposed)
        )

    @classmethod
    def draw(cls, draws: Draws, probability: float, images: Tensor) -> Transform:
        """Each of the four with a probability, for each image on its own."""
        batch, _, height, width = images.shape
        flags = [draws.uniform(batch) < probability for _ in range(4)]
        if height != width:
            flags[3] = flags[3][:1].expand(batch)
        return cls(*flags)

    def __call__(self, images: Tensor) -> Tensor:
        """F(x): a new tensor, (B, C, H, W) to the same, or to (B, C, W, H) if swapped."""
        images = torch.where(self.inverted, 1 - images, images)
        images = torch.where(self.rows, images.flip(2), images)
        images = torch.where(self.columns, images.flip(3), images)
        return self._swapped(images)

    def undo(self, images: Tensor) -> Tensor:
        """F^-1(x), for images of any size."""
        images = self._swapped(images)
        images = torch.where(self.columns, images.flip(3), images)
        images = torch.where(self.rows, images.flip(2), images)
        return torch.where(self.inverted, 1 - images, images)

    def through(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """F^-1(network(F(x))); the network may write into what it is given."""
        return self.undo(network(self(images)))

    def _swapped(self, images: Tensor) -> Tensor:
        if images.shape[2] == images.shape[3]:
            return torch.where(self.transposed, images.mT, images)
        together = bool(self.transposed.all())
        if not together and bool(self.transposed.any()):
            raise ValueError("images that are not square must be transposed all or none")
        return images.mT if together else images
