"""What the examples train on: random crops of pairs of images."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from .degrade import Image
from .images import BadImageError, list_images, photographs, read_image
from .metrics import to_tensor
from .pairs import Pair, PairFiles, load_pairs, open_pairs, open_sets, pairs_from_images
from .recipes import Recipe
from .sampling import Crop

__all__ = [
    "BadImageError",
    "Pair",
    "PairFiles",
    "RandomCrops",
    "list_images",
    "load_pairs",
    "lq_sizes",
    "open_pairs",
    "open_sets",
    "pairs_from_images",
    "photographs",
    "read_image",
]


class RandomCrops(Dataset[tuple[Tensor, Tensor]]):
    """Aligned random crops, each flipped and turned at random.

    Item i depends on (seed, i), and a `Crop` on its size, and on nothing else: workers, order and
    earlier items do not matter. Images are drawn by their number of pixels, so small ones are not
    over-represented.

    Args:
        pairs: The images.
        crop: LR pixels a side, the largest that will be asked for.
        scale: HR size over LR size.
        length: Number of items.
        seed: 0 or more.
        quarter_turns: Whether to turn by 90 degrees, besides flipping.
        mirror: Whether to mirror smaller images at their lower and right borders.

    Shape:
        Items: float32 in [0, 1], (3, crop, crop) and (3, crop scale, crop scale).

    Raises:
        ValueError: Where an image is smaller than the crop and not mirrored, or there is none.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        crop: int,
        scale: int,
        length: int,
        seed: int,
        quarter_turns: bool = True,
        mirror: bool = False,
    ) -> None:
        if not pairs:
            raise ValueError("got no pairs; expected at least one")
        sizes = lq_sizes(pairs)
        for index, (height, width) in enumerate(sizes):
            if min(height, width) < crop and not mirror:
                raise ValueError(
                    f"{pairs[index].name}: LR is {width}x{height}; expected {crop}x{crop} or more"
                )
        self.pairs, self.crop, self.scale = pairs, crop, scale
        self.length, self.seed = length, seed
        self.quarter_turns = quarter_turns
        self.share = np.cumsum([height * width for height, width in sizes], dtype=float)
        self.share /= self.share[-1]

    @classmethod
    def of(cls, recipe: Recipe, pairs: Sequence[Pair], *, scale: int, seed: int) -> "RandomCrops":
        """The crops that a recipe asks for."""
        return cls(
            pairs,
            crop=max(stage.crop for stage in recipe.all_stages),
            scale=scale,
            length=recipe.crops_before(recipe.iterations),
            seed=seed,
            quarter_turns=recipe.quarter_turns,
            mirror=recipe.mirror,
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int | Crop) -> tuple[Tensor, Tensor]:
        """Crops of LR and HR; IndexError outside [0, length)."""
        index, size = item if isinstance(item, Crop) else (item, self.crop)
        if not 0 <= index < self.length:
            raise IndexError(f"got item {index}; expected 0 to {self.length - 1}")
        rng = np.random.default_rng((self.seed, index))
        _, lq, hq = self.pairs[int(np.searchsorted(self.share, rng.random(), side="right"))]
        top, left = (int(rng.integers(max(0, side - size) + 1)) for side in lq.shape[:2])
        turns, flip = int(rng.integers(4)), 1 - 2 * int(rng.integers(2))
        if not self.quarter_turns:
            turns -= turns % 2

        def cut(image: Image, unit: int) -> Tensor:
            y, x, side = top * unit, left * unit, size * unit
            part = _mirrored(image[y : y + side, x : x + side], side)
            return to_tensor(np.rot90(part, turns)[:, ::flip])

        return cut(lq, 1), cut(hq, self.scale)


def lq_sizes(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    """Height and width of each low-quality image."""
    if isinstance(pairs, PairFiles):
        return pairs.sizes
    return [(lq.shape[0], lq.shape[1]) for _, lq, _ in pairs]


def _mirrored(image: Image, side: int) -> Image:
    """An image of (side, side), repeated beyond its lower and right borders by reflection."""
    height, width = image.shape[:2]
    if min(height, width) == side:
        return image
    missing = ((0, side - height), (0, side - width), (0, 0))
    return np.pad(image, missing, mode="symmetric")
