"""Random crops of pairs of images, and which of them each step of each process takes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..recipe import Recipe
from ..results.metrics import to_tensor
from ..training.checkpoint import checksum
from .datasets import Pair, PairFiles, lq_sizes
from .images import BadImageError, Image

TRIES = 100  # images drawn for one crop, of which none can be read, before it is given up
SHOWN = 5  # names in a message


class Crop(NamedTuple):
    """An item of `RandomCrops`: its number, and LQ pixels a side."""

    number: int
    size: int


class RandomCrops(Dataset[tuple[Tensor, Tensor]]):
    """Aligned random crops, each flipped and turned at random.

    Item i depends on (seed, i), and a `Crop` on its size, and on nothing else: workers, order and
    earlier items do not matter. Images are drawn by their number of pixels, so small ones are not
    over-represented. For an image that cannot be read another one is drawn, by seed and number too.
    Images smaller than `crop`, the most LR pixels a side that will be asked for, are mirrored at
    their lower and right borders if `mirror` says so, and refused otherwise.

    Attributes:
        drawn: The images that crops are drawn from, by name: height and width of LR, and a checksum
            of the pixels, or of the files' sizes where the pixels are not in memory.

    Shape: items are float32 in [0, 1], (3, crop, crop) and (3, crop scale, crop scale).
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
        folder: Path | None = None,
    ) -> None:
        if not pairs:
            raise ValueError("got no pairs; expected at least one")
        sizes = lq_sizes(pairs)
        small = [index for index, size in enumerate(sizes) if min(size) < crop and not mirror]
        if small:
            height, width = sizes[small[0]]
            place = f"{folder}: " * (folder is not None) + "LR of " * (scale > 1)
            raise ValueError(
                f"{place}image {pairs[small[0]].name} is {width}x{height}; expected "
                f"{crop}x{crop} or more, the size of the crops"
            )
        self.pairs, self.crop, self.scale = pairs, crop, scale
        self.length, self.seed = length, seed
        self.quarter_turns = quarter_turns
        self.unread = torch.zeros(len(pairs), dtype=torch.bool).share_memory_()  # by workers, too
        self.names, sums = _named(pairs)
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self._draw_from(
            {name: (*size, seen) for name, size, seen in zip(self.names, sizes, sums, strict=True)}
        )

    def _draw_from(self, images: dict[str, tuple[int, int, str]]) -> None:
        self.drawn = images
        self.order = [self.numbers.get(name) for name in images]  # None for those that are gone
        share = np.cumsum([height * width for height, width, _ in images.values()], dtype=float)
        self.share = share / share[-1]

    @property
    def left_out(self) -> list[str]:
        """Names of the images that could not be read, so far."""
        unread = {self.names[number] for number in self.unread.nonzero().flatten().tolist()}
        return sorted({*unread, *getattr(self.pairs, "left_out", ())})

    def continue_from(self, then: dict[str, tuple[int, int, str]]) -> str:
        """Draw from the images of an earlier run, as it did; what has changed since, in words.

        Raises:
            ValueError: Most of these images are gone.
        """
        now = self.drawn
        kept = [name for name in then if name in now]
        if 2 * len(kept) <= len(then):
            raise ValueError(
                f"{len(then) - len(kept)} of its {len(then)} images are gone, such as "
                f"{next(name for name in then if name not in now)}"
            )
        changes = {
            "left out, as they are gone": [name for name in then if name not in now],
            "not used, as they are new": [name for name in now if name not in then],
            "used, though changed": [n for n in kept if _changed(then[n][2], now[n][2])],
        }
        self._draw_from({name: (*then[name][:2], now.get(name, then[name])[2]) for name in then})
        return "; ".join(
            f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' * (len(names) > SHOWN)}"
            for what, names in changes.items()
            if names
        )

    @classmethod
    def of(cls, recipe: Recipe, pairs: Sequence[Pair], **settings: Any) -> "RandomCrops":
        """The crops that a recipe asks for; settings are `scale`, `seed` and `folder`."""
        return cls(
            pairs,
            crop=max(stage.crop for stage in recipe.all_stages),
            length=recipe.crops_before(recipe.iterations),
            quarter_turns=recipe.quarter_turns,
            mirror=recipe.mirror,
            **settings,
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int | Crop) -> tuple[Tensor, Tensor]:
        """Crops of LR and HR; IndexError outside [0, length)."""
        index, size = item if isinstance(item, Crop) else (item, self.crop)
        if not 0 <= index < self.length:
            raise IndexError(f"got item {index}; expected 0 to {self.length - 1}")
        (_, lq, hq), rng = self._draw(index)
        top, left = (int(rng.integers(max(0, side - size) + 1)) for side in lq.shape[:2])
        turns, flip = int(rng.integers(4)), 1 - 2 * int(rng.integers(2))
        if not self.quarter_turns:
            turns -= turns % 2

        def cut(image: Image, unit: int) -> Tensor:
            y, x, side = top * unit, left * unit, size * unit
            part = image[y : y + side, x : x + side]
            missing = [(0, side - length) for length in part.shape[:2]]
            if any(map(max, missing)):
                part = np.pad(part, (*missing, (0, 0)), mode="symmetric")
            return to_tensor(np.rot90(part, turns)[:, ::flip])

        return cut(lq, 1), cut(hq, self.scale)

    def _draw(self, index: int) -> tuple[Pair, np.random.Generator]:
        """The image of an item, and what its place is drawn by."""
        for tries in range(TRIES):
            rng = np.random.default_rng((self.seed, index, tries) if tries else (self.seed, index))
            number = self.order[int(np.searchsorted(self.share, rng.random(), side="right"))]
            if number is None or self.unread[number]:
                continue
            try:
                return self.pairs[number], rng
            except BadImageError as error:
                assert isinstance(self.pairs, PairFiles)
                self.pairs.leave_out(self.names[number], error)
                self.unread[number] = True
        raise BadImageError(f"{TRIES} images drawn in turn cannot be read")


def _named(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """Names, each once, and checksums by which changes are noticed."""
    if isinstance(pairs, PairFiles) and not pairs.in_memory:
        names = [files.name for files in pairs.files]
        sizes = ([p.stat().st_size for p in (f.hq, f.lq) if p] for f in pairs.files)
        sums = [f"bytes {each}" for each in sizes]
    else:
        names = [pair.name for pair in pairs]
        sums = [checksum((pair.lq, pair.hq)) for pair in pairs]
    seen: Counter[str] = Counter()
    for index, name in enumerate(names):
        seen[name] += 1
        names[index] += f" ({seen[name]})" * (seen[name] > 1)
    return names, sums


def _changed(then: str, now: str) -> bool:
    """Whether checksums differ, if they are of one kind: pixels in memory, or bytes of files."""
    return then.split()[0] == now.split()[0] and then != now


class Batches(Sampler[list[Crop]]):
    """The batches of one process, in the order of training.

    Each step takes the recipe's next crops. Processes share them in equal blocks, and each goes
    through its block in equal parts (gradient accumulation), so neither number changes what a step
    sees. `first` is the step to begin with.
    """

    def __init__(
        self, recipe: Recipe, *, first: int = 0, processes: int = 1, rank: int = 0, parts: int = 1
    ) -> None:
        check_shares(recipe, processes, parts)
        self.recipe, self.first = recipe, first
        self.processes, self.rank, self.parts = processes, rank, parts

    def __len__(self) -> int:
        return max(0, self.recipe.iterations - self.first) * self.parts

    def __iter__(self) -> Iterator[list[Crop]]:
        start = self.recipe.crops_before(self.first)
        for step in range(self.first, self.recipe.iterations):
            stage = self.recipe.stage_at(step)
            size = stage.batch_size // (self.processes * self.parts)
            block = start + self.rank * self.parts * size
            for begin in range(block, block + self.parts * size, size):
                yield [Crop(number, stage.crop) for number in range(begin, begin + size)]
            start += stage.batch_size


def check_shares(recipe: Recipe, processes: int, parts: int) -> None:
    """Require that every batch of a recipe divides into equal shares."""
    for stage in recipe.all_stages:
        if stage.batch_size % (processes * parts):
            raise ValueError(
                f"got a batch of {stage.batch_size} crops from step {stage.step:,} on; expected "
                f"a multiple of {processes * parts}, the processes ({processes}) times the parts "
                f"that gradients are accumulated over ({parts})"
            )
