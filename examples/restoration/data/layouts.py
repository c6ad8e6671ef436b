"""Data sets as people have them on disk: which file belongs to which.

Folders hold versions of the same images where their paths differ in words for degraded images and
for ground truths only (`HR` and `LR_bicubic/X2`, `train_blur/000` and `train_sharp/000`), or where
they lie side by side with equal names of files, whatever they are called. Files belong together by
their names, in which such words do not count either (`blur_1` and `gt_1`, `1` and `1x2`).
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image as Pillow

from .images import BadImageError, Floats, image_size, list_images, read_image

SHRUNK = r"lq|lr(bi\w*|x?\d*)?|low|bic(ubic)?|x\d[a-z]?\d?|\dx"  # words for degraded images
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
SAY = (
    "give two folders outright by --lq and --gt (of validation: --val-lq and --val-gt), or ground "
    "truths alone by --gt"
)
LOOKED_AT = 16  # folders side by side that are compared by what they show
THUMBNAIL = 32  # pixels a side
ALIKE, UNLIKE = 0.7, 0.3  # correlation of thumbnails: of the same image, of different ones
ORDERED = (("lq", ""), ("", "gt"), ("lq", "gt"))  # roles of degraded images and of ground truths


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
Versions: TypeAlias = tuple[str, str, Sequence[str]]  # folders: LQ, ground truths, others as LQ


def find_pairs(
    source: Source,
    scale: int,
    *,
    alone: bool = False,
    parts: bool = True,
    held_out: bool = False,
    complete: bool = True,
) -> list[Files]:
    """The pairs of a data set.

    Args:
        source: Its folder, or those of its two versions.
        scale: HR size over LR size; 1 for deblurring and deraining.
        alone: Whether it may hold ground truths alone, as it always may for scales above 1.
        parts: Whether sub-images stand for their images where there are any.
        held_out: Whether they are to be scored: of all DIV2K that is its validation images.
        complete: Whether to refuse images without a partner; otherwise they are among the pairs,
            with the path at which the partner was looked for.

    Raises:
        ValueError: Which image belongs to which is in doubt, or one has no partner.
    """
    if not isinstance(source, TwoFolders):
        found = _choose(source, scale, parts, held_out)
    else:
        truths = _by_name(source.gt, list_images(source.gt))
        found = [Files(name, path, None) for name, path in truths.items()]
        if source.lq is not None:
            lq = _by_name(source.lq, list_images(source.lq))
            found = _matched(Path(), lq, truths, source.lq, source.gt)
    lacking = [files for files in found if not all(path.is_file() for path in files[1:] if path)]
    if lacking and complete:
        missing, there = sorted(lacking[0][1:], key=Path.is_file)
        raise ValueError(
            f"{there}: no partner; expected {missing} ({len(lacking)} of {len(found)} images have "
            "none); --skip-bad goes on without it"
        )
    if scale == 1 and not alone and any(files.lq is None for files in found):
        raise ValueError(
            f"{source}: found no pairs; expected two versions of each image, in folders like blur "
            f"and sharp, or input and target; {SAY}"
        )
    return found


def sets_in(source: Source) -> list[Source]:
    """The sets to be scored apart: Rain13K's test sets where a folder holds them, or itself."""
    if isinstance(source, TwoFolders):
        return [source]
    return [source / name for name in RAIN_SETS if (source / name).is_dir()] or [source]


def check_alike(source: Source, found: Sequence[Files]) -> str:
    """What is to be said of pairs that do not show the same; ValueError if they were only found."""
    for _, hq, lq in _samples(found):
        if lq is not None and similarity(lq, hq) < UNLIKE:
            said = f"{lq} and {hq}: found to show different things"
            if isinstance(source, TwoFolders):
                return said
            raise ValueError(f"{said}; expected versions of the same images; {SAY}")
    return ""


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


def _samples(items: Sequence[Any]) -> list[Any]:
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
    cut = {
        path
        for path in images
        for name in path.relative_to(root).parts[:-1]
        if PART.fullmatch(name) and role(name)
    }
    whole = [path for path in images if path not in cut]
    if not cut or not whole:
        return _find(root, images, scale)
    found = _find(root, sorted(cut), scale) if parts else []
    if found and all(files.lq for files in found):
        return found
    full = _find(root, whole, scale)  # sub-images were not cut for this scale
    return full if not found or all(files.lq for files in full) else found


def _find(root: Path, images: Sequence[Path], scale: int) -> list[Files]:
    """The pairs among some images, or all of them as ground truths, or a refusal."""
    places = {path: path.relative_to(root).with_suffix("") for path in images}
    for folder in sorted({path.parent for path in images}):
        _check_one_version(folder, [path for path in images if path.parent == folder])
    fitting = {path for path, place in places.items() if _scales(place.parent) <= {scale}}
    tree: dict[Path, dict[str, Images]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(fitting):
        *folders, stem = places[path].parts
        for depth, child in enumerate([*folders, "."]):
            there = tree[Path(*folders[:depth])][child]
            name = (_plain_folder(folders[depth + 1 :]) / stem).as_posix()
            there[name if name not in there else str(path)] = path
    pairs: list[Files] = []
    done: set[Path] = set()
    for choose in (_by_words, _by_content):  # by what they show only where words say nothing
        for parent, children in sorted(tree.items()):
            left = {name: each for name, each in children.items() if done.isdisjoint(each.values())}
            for lq, hq, others in choose(root / parent, left, scale):
                within = _plain_folder((*parent.parts, hq if hq != "." else ""))
                folders = root / parent / lq, root / parent / hq
                pairs += _matched(within, left[lq], left[hq], *folders)
                done.update(path for name in (lq, hq, *others) for path in left[name].values())
    known = {_plain_place(places[path]) for path in fitting}  # LR of other scales has HR among them
    alone = [
        path
        for path in images
        if path not in done and (path in fitting or _plain_place(places[path]) not in known)
    ]
    _check_alone(root, alone, pairs)
    if not pairs:
        plain = {_plain_folder(places[path].parts[:-1]) / path.stem: path for path in alone}
        if len(plain) < len(alone):
            plain = {Path(name): path for name, path in _by_name(root, alone).items()}
        return [Files(name.as_posix(), path, None) for name, path in sorted(plain.items())]
    folders = {part for files in pairs for part in Path(files.name).parts[:-1]}
    splits = SPLITS & {word for folder in folders for word in re.split(r"[\W_]+", folder.lower())}
    if len(splits) > 1:
        raise ValueError(f"{root}: holds {' and '.join(sorted(splits))}; expected one of them")
    return sorted(pairs)


def _by_words(parent: Path, children: Mapping[str, Images], scale: int) -> Iterator[Versions]:
    """Folders whose names differ in words for degraded images and for ground truths only."""
    by_rest: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in children:
        by_rest[_split(name)[0] if name != "." else ""][role(name)].append(name)
    for roles in by_rest.values():
        truths = roles["gt"] or roles[""]
        degraded = sorted(roles["lq"] or (roles[""] if roles["gt"] else []), key=_preference)
        if not truths or not degraded:
            continue
        one_word = roles[""] in (truths, degraded)
        if one_word and not _common(_plain(children[truths[0]]), _plain(children[degraded[0]])):
            continue
        if len(truths) > 1:
            raise _doubt(parent / truths[0], parent / truths[1])
        if len(degraded) > 1 and _preference(degraded[0]) == _preference(degraded[1]):
            raise _doubt(parent / degraded[0], parent / degraded[1])
        yield degraded[0], truths[0], degraded[1:]


def _by_content(parent: Path, children: Mapping[str, Images], scale: int) -> Iterator[Versions]:
    """Folders that hold equal names and show the same; a word or the sizes say which is which."""

    def fits(lq: Path, hq: Path) -> bool:
        return image_size(lq) == tuple(side // scale for side in image_size(hq))

    plain = {name: _plain(each) for name, each in sorted(children.items())[:LOOKED_AT]}
    taken: set[str] = set()
    for one, other in combinations(plain, 2):
        common = _samples(_common(plain[one], plain[other]))
        seen = [(plain[one][name], plain[other][name]) for name in common]
        alike = [similarity(a, b) for a, b in seen]
        if not seen or any(value < ALIKE for value in alike):
            continue
        known = not all(map(isnan, alike))
        orders = [
            names
            for names, turn in (((one, other), 1), ((other, one), -1))
            if tuple(map(role, names)) in ORDERED
            or (known and scale > 1 and all(fits(*pair[::turn]) for pair in seen))
        ]
        if not orders and not known:
            continue
        if len(orders) != 1 or taken & {one, other}:
            raise _doubt(parent / one, parent / other)
        taken |= {one, other}
        yield *orders[0], []


def _common(one: Images, other: Images) -> list[str]:
    """The names that two folders have in common, if those are most of the smaller one's."""
    common = sorted(one.keys() & other.keys())
    return common if 2 * len(common) > min(len(one), len(other)) else []


def _preference(name: str) -> tuple[bool, int]:
    """Of degraded images bicubic's come first, then those that are called by fewest words."""
    kinds = _split(name)[1]
    return not any(kind.startswith("bic") for kind in kinds), len(kinds)


def _matched(within: Path, lq: Images, hq: Images, lq_folder: Path, hq_folder: Path) -> list[Files]:
    """Pairs of two folders by the names of their files, of which some may not be there."""
    named = [(lq, hq), (_plain(lq), hq), (_plain(lq), _plain(hq))]
    lq, hq = max(named, key=lambda each: len(each[0].keys() & each[1].keys()))
    return [
        Files((within / n).as_posix(), hq.get(n, hq_folder / n), lq.get(n, lq_folder / n))
        for n in {**lq, **hq}
    ]


def _check_one_version(folder: Path, paths: Sequence[Path]) -> None:
    """Refuse one folder with several versions of each image."""
    versions = defaultdict(set)
    for path in paths:
        versions[_plain_place(Path(path.stem))].add(path.stem)
    several = [sorted(stems) for stems in versions.values() if len(stems) > 1]
    if 2 * sum(map(len, several)) > len(paths):
        raise ValueError(
            f"{folder}: holds several versions of each image, such as {' and '.join(several[0])}; "
            f"expected a folder for each version; {SAY}"
        )


def _check_alone(root: Path, alone: Sequence[Path], pairs: Sequence[Files]) -> None:
    """Refuse images without partners in folders that are named as one of two versions is."""
    folders = sorted({path.parent.relative_to(root).parts for path in alone})
    for folder in folders:
        for depth, name in enumerate(folder):
            rest, kinds = _split(name)
            shrunk = any(re.fullmatch(SHRUNK, kind) for kind in kinds)
            if role(name) == "lq" and (shrunk or not rest):
                raise ValueError(
                    f"{root.joinpath(*folder[: depth + 1])}: named as low-quality images are, and "
                    f"found no ground truths for them; {SAY}"
                )
            for other in folders if role(name) == "gt" and not rest else ():
                beside = other[:depth] == folder[:depth] and other[depth : depth + 1] != (name,)
                if beside and "gt" not in map(role, other):
                    raise _doubt(root.joinpath(*folder), root.joinpath(*other))
    if alone and pairs:
        raise ValueError(
            f"{alone[0].parent}: found no partners of its images, but pairs beside it, such as "
            f"{pairs[0].lq} and {pairs[0].hq}; expected it elsewhere; {SAY}"
        )


def _doubt(one: Path, other: Path) -> ValueError:
    return ValueError(
        f"{one} and {other}: which of them holds the ground truths is not clear; {SAY}"
    )


def _by_name(root: Path, paths: Sequence[Path]) -> Images:
    """Images by their path below root, without the suffix."""
    images: Images = {}
    for path in paths:
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in images:
            raise ValueError(f"{path} and {images[name].name} share a name; expected one of them")
        images[name] = path
    return images


def _plain(images: Images) -> Images:
    """Images by names without the words of `KIND`, or as they are where names would be equal."""
    plain = {_plain_place(Path(name)).as_posix(): path for name, path in images.items()}
    return plain if len(plain) == len(images) else images


def _plain_place(place: Path) -> Path:
    """A path without suffix and without the words of `KIND`."""
    return _plain_folder(place.parts[:-1]) / (_split(place.name, stem=True)[0] or place.name)


def _plain_folder(parts: Sequence[str]) -> Path:
    return Path(*filter(None, (_split(part)[0] for part in parts)))


def _scales(folder: Path) -> set[int]:
    """The scales that a path speaks of."""
    kinds = (kind for part in folder.parts for kind in _split(part)[1])
    return {int(kind.strip("x")[0]) for kind in kinds if re.match(r"x\d|\dx", kind)}


def _split(name: str, stem: bool = False) -> tuple[str, list[str]]:
    """A name without the words of `KIND`, and these: of "LRbicx2" nothing, and "lrbic", "x2"."""
    name = re.sub("|".join(DIV2K), "", name)
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    before = r"(?<=\w)" if stem else r"(?<=lr|ic)"  # of a stem's end: 0001x2, babyx2
    spaced = re.sub(rf"(?i){before}(x\d[a-z]?\d?)$", r"_\1", spaced)
    words = [word for word in re.split(r"[\W_]+", spaced) if word]
    kinds = [word.lower() for word in words if KIND.fullmatch(word)]
    if not kinds:
        return name, []
    return "_".join(word for word in words if not KIND.fullmatch(word)), kinds


def role(name: str) -> str:
    """What the last telling word of a folder's name says: "lq", "gt", or nothing."""
    for kind in reversed(_split(name)[1]):
        if TRUTH.fullmatch(kind):
            return "gt"
        if DEGRADED.fullmatch(kind):
            return "lq"
    return ""
