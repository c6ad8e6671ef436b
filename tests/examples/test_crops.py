"""Random crops: of the right place, the right way round, by nothing but seed and number."""

import numpy as np
import pytest
import torch
from restoration.data.crops import RandomCrops
from restoration.data.datasets import Pair, pairs_from_images
from torch.utils.data import DataLoader


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def crops(seed=0, length=16):
    pairs = pairs_from_images({"a": noise(40, 60), "b": noise(80, 50, 1)}, 2)
    return RandomCrops(pairs, crop=8, scale=2, length=length, seed=seed)


def of_one(image, crop, length, **settings):
    pair = Pair("a", image, image)
    return RandomCrops([pair], crop=crop, scale=1, length=length, seed=0, **settings)


def test_items():
    assert len(crops()) == len(list(crops())) == 16
    for lq, hq in crops():
        assert lq.dtype == hq.dtype == torch.float32
        assert (lq.shape, hq.shape) == ((3, 8, 8), (3, 16, 16))
        assert 0 <= lq.min() <= hq.max() <= 1


def test_an_item_depends_on_seed_and_index_alone():
    again = crops(length=99)
    backwards = [again[i] for i in reversed(range(16))][::-1]
    loaded = [(lq[0], hq[0]) for lq, hq in DataLoader(crops(), batch_size=1, num_workers=2)]
    for item, other, by_workers in zip(crops(), backwards, loaded, strict=True):
        assert all(map(torch.equal, item, other))
        assert all(map(torch.equal, item, by_workers))
    items = [*crops(seed=0), *crops(seed=1)]
    assert len({lq.numpy().tobytes() for lq, _ in items}) == 32


def test_global_generators_are_neither_read_nor_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = crops()[3][0]
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(first, crops()[3][0])


def test_lr_and_hr_show_the_same_place_the_same_way_round():
    lq = noise(20, 30)
    pair = Pair("a", lq, lq.repeat(3, axis=0).repeat(3, axis=1))
    for small, large in RandomCrops([pair], crop=7, scale=3, length=32, seed=0):
        assert torch.equal(small.repeat_interleave(3, 1).repeat_interleave(3, 2), large)


def test_all_eight_orientations_occur_and_no_other():
    square = torch.from_numpy(noise(4, 4)).permute(2, 0, 1).float() / 255
    turned = [torch.rot90(square, k, (1, 2)) for k in range(4)]
    expected = {t.numpy().tobytes() for t in (*turned, *(t.flip(2) for t in turned))}
    seen = of_one(noise(4, 4), crop=4, length=200)
    assert {item.contiguous().numpy().tobytes() for item, _ in seen} == expected


def test_without_quarter_turns_rows_stay_rows():
    image = np.arange(16, dtype=np.uint8).reshape(16, 1, 1) * np.ones((1, 16, 3), np.uint8)
    items = [lq for lq, _ in of_one(image, crop=8, length=40, quarter_turns=False)]
    assert all((lq == lq[:, :, :1]).all() for lq in items)
    assert {bool(lq[0, 0, 0] < lq[0, -1, 0]) for lq in items} == {True, False}


def test_every_position_is_reached():
    image = np.arange(9, dtype=np.uint8).reshape(3, 3, 1).repeat(3, axis=2)
    seen = {round(lq[0, 0, 0].item() * 255) for lq, _ in of_one(image, crop=1, length=300)}
    assert seen == set(range(9))


def test_images_are_drawn_by_area():
    dark, light = np.zeros((10, 10, 3), np.uint8), np.full((10, 30, 3), 255, np.uint8)
    pairs = [Pair("dark", dark, dark), Pair("light", light, light)]
    drawn = RandomCrops(pairs, crop=2, scale=1, length=2000, seed=0)
    assert 0.7 < np.mean([lq.mean().item() for lq, _ in drawn]) < 0.8


def test_small_images_are_mirrored_at_two_borders_or_refused():
    image = noise(5, 12)
    with pytest.raises(ValueError, match="image a is 12x5; expected 8x8 or more"):
        of_one(image, crop=8, length=1)
    tall = np.concatenate([image, image[::-1]])[:8]
    windows = {tall[:, x : x + 8].tobytes() for x in range(5)}
    for lq, hq in of_one(image, crop=8, length=30, mirror=True):
        assert lq.shape == hq.shape == (3, 8, 8)
        crop = np.rint(lq.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        turned = [np.rot90(crop, k) for k in range(4)]
        assert {t.tobytes() for t in (*turned, *(t[:, ::-1] for t in turned))} & windows


def test_refusals():
    with pytest.raises(ValueError, match="got no pairs"):
        RandomCrops([], crop=8, scale=2, length=4, seed=0)
    with pytest.raises(IndexError, match="item 16; expected 0 to 15"):
        crops()[16]
