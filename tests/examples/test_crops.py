"""Random crops: of the right place, the right way round, by nothing but seed and number."""

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from restoration.data.crops import RandomCrops
from restoration.data.datasets import Pair, open_pairs, pairs_from_images
from restoration.data.images import BadImageError
from torch.utils.data import DataLoader
from toys import noise


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
    for name in ("light", "dark"):  # of the same name, too
        pairs = [Pair("dark", dark, dark), Pair(name, light, light)]
        drawn = RandomCrops(pairs, crop=2, scale=1, length=1000, seed=0)
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


class TestImagesThatCannotBeRead:
    """Another image is drawn for a crop, always the same; all other crops stay as they were."""

    LENGTH = 60

    @pytest.fixture
    def folder(self, tmp_path):
        for seed, name in enumerate("abcd"):
            Pillow.fromarray(noise(24, 24, seed)).save(tmp_path / f"{name}.png")
        return tmp_path

    def crops(self, folder, **reading):
        pairs = open_pairs(folder, 2, memory=0, **reading)
        return RandomCrops(pairs, crop=8, scale=2, length=self.LENGTH, seed=0)

    def same(self, one, other):
        """For each crop, whether it is the same in both."""
        return [all(map(torch.equal, a, b)) for a, b in zip(one, other, strict=True)]

    def test_are_left_out_and_named(self, folder, capsys):
        whole = [*self.crops(folder)]
        path = folder / "b.png"
        path.write_bytes(path.read_bytes()[:900])  # its header is good
        with pytest.raises(BadImageError, match=r"b\.png: .*truncated.*\(--skip-bad goes on"):
            [*self.crops(folder)]
        damaged = self.crops(folder, skip_bad=True)
        assert damaged.left_out == []
        first = [*damaged]
        assert 0.6 < np.mean(self.same(whole, first)) < 0.9
        assert capsys.readouterr().err.count("warning: left out") == 1
        assert damaged.left_out == ["b"]
        again = self.crops(folder, skip_bad=True)
        assert all(self.same(first, [again[i] for i in reversed(range(self.LENGTH))][::-1]))
        third = self.crops(folder, skip_bad=True)
        by_workers = [(lq[0], hq[0]) for lq, hq in DataLoader(third, batch_size=1, num_workers=2)]
        assert all(self.same(first, by_workers))
        assert third.left_out == ["b"]

    def test_a_run_goes_on_by_the_images_that_it_began_with(self, folder):
        begun = self.crops(folder)
        then, whole = dict(begun.drawn), [*begun]
        assert begun.continue_from(then) == ""
        (folder / "b.png").rename(folder / "new.png")
        Pillow.fromarray(noise(24, 24, 9) // 99).save(folder / "c.png")
        later = self.crops(folder)
        assert later.continue_from(then) == (
            "1 left out, as they are gone: b; 1 not used, as they are new: new; "
            "1 used, though changed: c"
        )
        assert 0.3 < np.mean(self.same(whole, later)) < 0.7
        assert list(later.drawn) == list(then)
        (folder / "new.png").rename(folder / "b.png")
        Pillow.fromarray(noise(24, 24, 2)).save(folder / "c.png")
        repaired = self.crops(folder)
        assert repaired.continue_from(later.drawn) == "1 used, though changed: c"
        assert all(self.same(whole, repaired))

    def test_another_memory_is_no_change(self, folder):
        pairs = open_pairs(folder, 2)
        assert pairs.in_memory
        loaded = RandomCrops(pairs, crop=8, scale=2, length=self.LENGTH, seed=0)
        assert loaded.continue_from(self.crops(folder).drawn) == ""

    def test_most_of_them_gone(self, folder):
        then = self.crops(folder).drawn
        for name in "bd":
            (folder / f"{name}.png").unlink()
        with pytest.raises(ValueError, match="2 of its 4 images are gone, such as b"):
            self.crops(folder).continue_from(then)

    def test_all_of_them(self, folder):
        crops = self.crops(folder, skip_bad=True)
        for path in folder.iterdir():
            path.unlink()
        with pytest.raises(BadImageError, match="100 images drawn in turn cannot be read"):
            crops[0]


def test_refusals():
    with pytest.raises(ValueError, match="got no pairs"):
        RandomCrops([], crop=8, scale=2, length=4, seed=0)
    with pytest.raises(IndexError, match="item 16; expected 0 to 15"):
        crops()[16]
