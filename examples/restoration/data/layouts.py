"""Data sets as people have them on disk: which file belongs to which.

Folders hold versions of the same images where their paths differ in words for degraded images and
for ground truths only (`HR` and `LR_bicubic/X2`, `train_blur/000` and `train_sharp/000`), or where
they lie side by side with equal names of files, whatever they are called. Files belong together by
their names, in which such words do not count either (`blur_1` and `gt_1`, `1` and `1x2`).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from math import isnan
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from PIL import Image as Pillow

from .images import BadImageError, Floats, image_size, list_images, read_image

SHRUNK = r"lq|lr(bi\w*|x?\d*)?|low|bic(ubic)?|x\d+[a-z]?\d*|\d+x"  # words for degraded images
SPOILT = r"inputs?|blur(ry|red)?|rain(y)?|nois[ey]|haz[ey]|fog(gy)?|snowy?|degraded|corrupted"
TRUE = r"gt(mod\d+)?|h[rq]|high|targets?|sharp|clean|clear|norain|truths?|groundtruths?|original"
SAID = r"images?|imgs?|ground|gamma|unknown|mild|difficult|wild|sub|crops"  # beside these
DEGRADED, TRUTH, KIND = (
    re.compile(pattern, re.IGNORECASE)
    for pattern in (f"{SHRUNK}|{SPOILT}", TRUE, f"{SHRUNK}|{SPOILT}|{TRUE}|{SAID}")
)
SPLITS = {"train", "val", "valid", "validation", "test"}
DIV2K = ("DIV2K_train_", "DIV2K_valid_")  # its folders' names begin so
PART = re.compile(r".*_(sub|crops)")  # folders of sub-images
UNFINISHED = ".unfinished"  # lies in a data set while prepare.py is at work there
RAIN_SETS = ("Test100", "Rain100H", "Rain100L", "Test2800", "Test1200")  # the paper's Table 4
MADE = {"sr": "shrunk by MATLAB's bicubic", "deblur": "blurred", "derain": "rained on"}
SAY = "give two folders outright by --lq and --gt (of validation: --val-lq and --val-gt), or ground"
SAY = f"{SAY} truths alone by --gt"
LOOKED_AT = 16  # folders side by side that are compared by what they show
SAMPLES = 3  # images of each
THUMBNAIL = 32  # pixels a side
ORDERED = (("lq", ""), ("", "gt"), ("lq", "gt"))  # roles of low-quality images, ground truths
ALIKE, UNLIKE = 0.8, 0.3  # correlation of thumbnails: of the same image, of different ones


T = TypeVar("T")


class Files(NamedTuple):
    """A pair's name, its ground truth, and its low-quality image, None where that is to be made."""

    name: str
    hq: Path
    lq: Path | None


class TwoFolders(NamedTuple):
    """Folders of low-quality images and of ground truths, or of ground truths alone."""

    lq: Path | None
    gt: Path

    def __str__(self) -> str:
        return str(self.gt) if self.lq is None else f"{self.lq} and {self.gt}"


Source: TypeAlias = Path | TwoFolders
Images: TypeAlias = dict[str, Path]  # by their names
Versions: TypeAlias = tuple[
    str, str, Sequence[str]
]  # low-quality, ground truths, others like the first


def find_pairs(
    source: Source,
    scale: int,
    *,
    alone: bool | None = None,
    parts: bool = True,
    held_out: bool = False,
) -> list[Files]:
    """The pairs of a data set.

    Args:
        source: Its folder, or those of its two versions.
        scale: HR size over LR size; 1 for deblurring and deraining.
        alone: Whether it may hold ground truths alone; by default for scales above 1.
        parts: Whether sub-images stand for their images where there are any.
        held_out: Whether they are to be scored: of all DIV2K that is its validation images.

    Raises:
        ValueError: Which image belongs to which is in doubt, or one has no partner.
    """
    if isinstance(source, TwoFolders):
        truths = _by_name(source.gt, list_images(source.gt))
        if source.lq is not None:
            lq = _by_name(source.lq, list_images(source.lq))
            return _matched(Path(), lq, truths, source.lq, source.gt)
        found = [Files(name, path, None) for name, path in truths.items()]
    else:
        found = _choose(source, scale, parts, held_out)
    if scale == 1 and not alone and any(files.lq is None for files in found):
        raise ValueError(
            f"{source}: found no pairs; expected two versions of each image, in folders like blur "
            f"and sharp, or input and target; {SAY}"
        )
    return found


def made(task: str, source: Source, scale: int, *, held_out: bool = False) -> str:
    """What is to be said where low-quality images are made, or nothing."""
    found = find_pairs(source, scale, alone=True, held_out=held_out)
    if found[0].lq is not None:
        return ""
    return f"no pairs{f' for x{scale}' * (scale > 1)} in {source}: its images are {MADE[task]}"


def sets_in(source: Source) -> list[Source]:
    """The sets to be scored apart: Rain13K's test sets where a folder holds them, or itself."""
    if isinstance(source, TwoFolders):
        return [source]
    return [source / name for name in RAIN_SETS if (source / name).is_dir()] or [source]


def check_alike(source: Source, found: Sequence[Files]) -> str:
    """What is to be said of pairs that do not show the same; ValueError if they were only found."""
    pairs = [(f.lq, f.hq) for f in _samples(found) if f.lq is not None]
    if not pairs or not all(similarity(lq, hq) < UNLIKE for lq, hq in pairs):
        return ""
    lq, hq = pairs[0]
    said = f"{lq} and {hq}: found to show different things, as other pairs do"
    if isinstance(source, TwoFolders):
        return said
    raise ValueError(f"{said}; expected versions of the same images; {SAY}")


def similarity(one: Path, other: Path) -> float:
    """Correlation of two images made small; not a number where that says nothing."""
    try:
        thumbnails = [_thumbnail(path) for path in (one, other)]
    except BadImageError:
        return float("nan")  # whoever reads it says so
    with np.errstate(divide="ignore", invalid="ignore"):  # of a single colour: not a number
        return float(np.corrcoef(*thumbnails)[0, 1])


@lru_cache(maxsize=256)
def _thumbnail(path: Path) -> Floats:
    image = read_image(path)
    if min(image.shape[:2]) < THUMBNAIL // 2:
        return np.zeros(THUMBNAIL**2)
    gray = Pillow.fromarray(image).convert("L")
    return np.asarray(gray.resize((THUMBNAIL, THUMBNAIL), Pillow.Resampling.BOX), float).ravel()


def _samples(items: Sequence[T]) -> list[T]:
    """The first, the middle and the last."""
    return [items[i] for i in sorted({0, len(items) // 2, len(items) - 1}) if items]


def _choose(root: Path, scale: int, parts: bool, held_out: bool) -> list[Files]:
    """Of DIV2K one split, and of sub-images and their images those that have pairs."""
    if parts and (root / UNFINISHED).exists():
        raise ValueError(
            f"{root / UNFINISHED}: sub-images are unfinished; expected prepare.py to be run again, "
            "or them and this file to be removed"
        )
    images = list_images(root)
    first = {path: path.relative_to(root).parts[0] for path in images}
    if all(any(name.startswith(begin) for name in first.values()) for begin in DIV2K):
        images = [path for path in images if first[path].startswith(DIV2K[held_out])]
    cut = [path for path in images if _is_part(path.relative_to(root).parent)]
    whole = [path for path in images if path not in set(cut)]
    if not cut or not whole:
        return _find(root, images, scale)
    if not parts:
        return _find(root, whole, scale)
    found = _find(root, cut, scale)
    if any(files.lq is None for files in found):  # not cut for this scale
        full = _find(root, whole, scale)
        return full if all(files.lq is not None for files in full) else found
    return found


def _is_part(folder: Path) -> bool:
    return any(PART.fullmatch(name) and _role(_split(name)[1]) for name in folder.parts)


def _find(root: Path, images: Sequence[Path], scale: int) -> list[Files]:
    """The pairs among some images, or all of them as ground truths, or a refusal."""
    below = {path: path.relative_to(root) for path in images}
    for folder in sorted({path.parent for path in images}):
        _check_one_version(folder, [path.name for path in images if path.parent == folder])
    fitting = {path for path, place in below.items() if _scales(place) <= {scale}}
    tree: dict[Path, dict[str, Images]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(fitting):
        *folders, _ = below[path].parts
        for depth, child in enumerate([*folders, "."]):
            name = _plain_folder(folders[depth + 1 :]) / path.stem
            images_there = tree[Path(*folders[:depth])][child]
            images_there[name.as_posix() if name.as_posix() not in images_there else str(path)] = (
                path
            )
    pairs: list[Files] = []
    done: set[Path] = set()
    for choose in (_by_words, _by_content):  # by what they show only where words say nothing
        for parent, children in sorted(tree.items()):
            left = {name: each for name, each in children.items() if done.isdisjoint(each.values())}
            for lq, hq, others in choose(root / parent, left, scale):
                within = _plain_folder((*parent.parts, _split(hq)[0]))
                folders = root / parent / lq, root / parent / hq
                pairs += _matched(within, left[lq], left[hq], *folders)
                done.update(path for name in (lq, hq, *others) for path in left[name].values())
    names = {_plain_folder(below[path].parts[:-1]) / _plain_stem(path) for path in fitting}
    other_scales = {
        path
        for path in set(images) - fitting
        if _plain_folder(below[path].parts[:-1]) / _plain_stem(path) in names
    }
    alone = [path for path in images if path not in done | other_scales]
    _check_alone(root, alone, pairs)
    if not pairs:
        plain = {_plain_folder(below[path].parts[:-1]) / path.stem: path for path in alone}
        if len(plain) < len(alone):
            plain = {Path(name): path for name, path in _by_name(root, alone).items()}
        return [Files(name.as_posix(), path, None) for name, path in sorted(plain.items())]
    words = {
        word for files in pairs for part in Path(files.name).parts[:-1] for word in _words(part)
    }
    if len(splits := sorted(SPLITS & words)) > 1:
        raise ValueError(f"{root}: holds {' and '.join(splits)}; expected one of them")
    return sorted(pairs)


def _by_words(parent: Path, children: Mapping[str, Images], scale: int) -> Iterator[Versions]:
    """Folders whose names differ in words for degraded images and for ground truths only."""
    children = {name: _plain(each) for name, each in children.items()}
    by_rest: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in children:
        rest, kinds = _split(name)
        by_rest["" if name == "." else rest][_role(kinds)].append(name)
    for roles in by_rest.values():
        truths = roles["gt"] or roles[""]
        degraded = sorted(roles["lq"] or (roles[""] if roles["gt"] else []), key=_preference)
        if not truths or not degraded:
            continue
        if roles[""] in (truths, degraded) and not _share(
            children[truths[0]], children[degraded[0]]
        ):
            continue  # one word is not enough
        if len(truths) > 1:
            raise _doubt(parent / truths[0], parent / truths[1])
        if len(degraded) > 1 and _preference(degraded[0]) == _preference(degraded[1]):
            raise _doubt(parent / degraded[0], parent / degraded[1])
        yield degraded[0], truths[0], degraded[1:]


def _by_content(parent: Path, children: Mapping[str, Images], scale: int) -> Iterator[Versions]:
    """Folders that hold equal names and show the same; a word or the sizes say which is which."""
    children = {name: _plain(each) for name, each in sorted(children.items())[:LOOKED_AT]}
    taken: set[str] = set()
    for one, other in combinations(children, 2):
        common = _share(children[one], children[other])
        seen = [(children[one][name], children[other][name]) for name in _samples(common)]
        alike = [similarity(a, b) for a, b in seen]
        if not seen or any(value < ALIKE for value in alike):
            continue
        by_size = scale > 1 and not all(map(isnan, alike))
        orders = [
            names
            for names, turn in (((one, other), 1), ((other, one), -1))
            if (_role(_split(names[0])[1]), _role(_split(names[1])[1])) in ORDERED
            or (by_size and all(_fits(*pair[::turn], scale) for pair in seen))
        ]
        if not orders and all(map(isnan, alike)):
            continue  # too small or unreadable
        if len(orders) != 1 or taken & {one, other}:
            raise _doubt(parent / one, parent / other)
        taken |= {one, other}
        yield *orders[0], []


def _share(one: Images, other: Images) -> list[str]:
    """The names that two folders have in common, if those are most of the smaller one's."""
    common = sorted(one.keys() & other.keys())
    return common if 2 * len(common) > min(len(one), len(other)) else []


def _preference(name: str) -> tuple[bool, int]:
    """Of low-quality images bicubic's come first, then those that are called by fewest words."""
    kinds = _split(name)[1]
    return not any(kind.startswith("bic") for kind in kinds), len(kinds)


def _fits(lq: Path, hq: Path, scale: int) -> bool:
    try:
        return image_size(lq) == tuple(side // scale for side in image_size(hq))
    except BadImageError:
        return False  # whoever reads it says so


def _check_one_version(folder: Path, names: Sequence[str]) -> None:
    """Refuse one folder with several versions of each image."""
    versions = defaultdict(list)
    for name in names:
        versions[_plain_stem(Path(name))].append(name)
    several = [each for each in versions.values() if len({Path(name).stem for name in each}) > 1]
    if 2 * sum(map(len, several)) > len(names):
        raise ValueError(
            f"{folder}: holds several versions of each image, such as "
            f"{' and '.join(sorted(several[0]))}; expected a folder for each version; {SAY}"
        )


def _check_alone(root: Path, alone: Sequence[Path], pairs: Sequence[Files]) -> None:
    """Refuse images without partners in folders that are named as one of two versions is."""
    folders = sorted({path.parent.relative_to(root) for path in alone})
    for folder in folders:
        for depth, name in enumerate(folder.parts):
            rest, kinds = _split(name)
            shrunk = any(re.fullmatch(SHRUNK, kind) for kind in kinds)
            if _role(kinds) == "lq" and (shrunk or not rest):
                raise ValueError(
                    f"{root.joinpath(*folder.parts[: depth + 1])}: named as low-quality images "
                    f"are, and found no ground truths for them; {SAY}"
                )
            if _role(kinds) == "gt" and not rest:
                parent = folder.parts[:depth]
                for other in folders:
                    beside = other.parts[:depth] == parent and other.parts[depth : depth + 1] != (
                        name,
                    )
                    if beside and "gt" not in map(_role, (_split(p)[1] for p in other.parts)):
                        raise _doubt(root / folder, root / other)
    if alone and pairs:
        raise ValueError(
            f"{alone[0].parent}: found no partners of its images, but pairs beside it, such as "
            f"{pairs[0].lq} and {pairs[0].hq}; expected it elsewhere; {SAY}"
        )


def _doubt(one: Path, other: Path) -> ValueError:
    return ValueError(
        f"{one} and {other}: which of them holds the ground truths is not clear; {SAY}"
    )


def _matched(within: Path, lq: Images, hq: Images, lq_folder: Path, hq_folder: Path) -> list[Files]:
    """Pairs of two folders by the names of their files."""
    for one, other in ((lq, hq), (_plain(lq), hq), (_plain(lq), _plain(hq))):
        if one.keys() == other.keys():
            return [Files((within / n).as_posix(), other[n], one[n]) for n in one]
    name = min({*one} ^ {*other})
    path, folder = (one[name], hq_folder) if name in one else (other[name], lq_folder)
    raise ValueError(
        f"{path}: no partner; expected {folder / name} ({len(lq)} images in {lq_folder}, "
        f"{len(hq)} in {hq_folder})"
    )


def _plain(images: Images) -> Images:
    """Images by names without the words of `KIND`, or as they are where names would be equal."""
    plain = {
        (Path(name).parent / _plain_stem(path)).as_posix(): path for name, path in images.items()
    }
    return plain if len(plain) == len(images) else images


def _plain_folder(parts: Iterable[str]) -> Path:
    return Path(*(plain for plain in (_split(part)[0] for part in parts) if plain))


def _plain_stem(path: Path) -> str:
    return _split(path.stem, stem=True)[0] or path.stem


def _scales(place: Path) -> set[int]:
    """The scales that the names of folders speak of."""
    kinds = [kind for part in place.parts[:-1] for kind in _split(part)[1]]
    return {
        int(number)
        for kind in kinds
        for number in re.findall(r"x(\d+)|(\d+)x", kind)[0:1]
        for number in number
        if number
    }


def _by_name(root: Path, paths: Sequence[Path]) -> Images:
    """Images by their path below root, without the suffix."""
    images: Images = {}
    for path in paths:
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in images:
            raise ValueError(f"{path} and {images[name].name} share a name; expected one of them")
        images[name] = path
    return images


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", name.lower()) if word]


def _split(name: str, stem: bool = False) -> tuple[str, list[str]]:
    """A name without the words of `KIND`, and these: of "LRbicx2" nothing, and "lrbic", "x2"."""
    name = re.sub("|".join(DIV2K), "", name)
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    before = r"(?<=\w)" if stem else r"(?<=lr|ic)"  # of a stem's end: 0001x2, babyx2
    spaced = re.sub(rf"(?i){before}(x\d+[a-z]?\d?)$", r"_\1", spaced)
    words = [word for word in re.split(r"[\W_]+", spaced) if word]
    kinds = [word.lower() for word in words if KIND.fullmatch(word)]
    if not kinds:
        return name, []
    return "_".join(word for word in words if not KIND.fullmatch(word)), kinds


def _role(kinds: Sequence[str]) -> str:
    """What the last telling word says: "lq", "gt", or nothing."""
    for kind in reversed(kinds):
        if TRUTH.fullmatch(kind):
            return "gt"
        if DEGRADED.fullmatch(kind):
            return "lq"
    return ""
