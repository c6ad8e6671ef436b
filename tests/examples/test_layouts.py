"""Folders as people have them, for images of one size and for sub-images."""

import numpy as np
import pytest
from PIL import Image as Pillow
from restoration.data.crops import RandomCrops
from restoration.data.datasets import Pair, PairFiles, load_pairs, open_pairs, open_sets
from restoration.data.layouts import UNFINISHED, find_pairs, sets_in
from restoration.data.synthetic import camera_motion


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path, image=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(noise(8, 8) if image is None else image).save(path)
    return path


@pytest.mark.parametrize(
    ("lq", "hq"),
    [
        *(("input", "target"), ("input", "gt"), ("blur", "sharp"), ("blur", "gt"), ("lq", "gt")),
        *(("rain", "norain"), ("rain", "gt"), ("rainy", "gt"), ("rainy", "clean")),
    ],
)
def test_pairs_of_one_size(lq, hq, tmp_path):
    write(tmp_path / lq / "a.png", noise(9, 7, 1))
    write(tmp_path / hq / "a.bmp", noise(9, 7, 2))
    write(tmp_path / lq / "b.png")
    write(tmp_path / hq / "b.png")
    first, second = load_pairs(tmp_path, 1)
    assert (first.name, second.name) == ("a", "b")
    np.testing.assert_array_equal(first.lq, noise(9, 7, 1))
    np.testing.assert_array_equal(first.hq, noise(9, 7, 2))


def test_gopros_sequences(tmp_path):
    for sequence in ("GOPR0372_07_00", "GOPR0372_07_01"):
        for kind in ("blur", "blur_gamma", "sharp"):
            write(tmp_path / sequence / kind / "000047.png", noise(8, 8, len(kind)))
    pairs = load_pairs(tmp_path, 1)
    assert [pair.name for pair in pairs] == [*("GOPR0372_07_00/000047", "GOPR0372_07_01/000047")]
    np.testing.assert_array_equal(pairs[1].lq, noise(8, 8, len("blur")))


def test_names_that_begin_with_their_folders(tmp_path):
    """RealBlur's."""
    for scene in ("scene001", "scene002"):
        for kind in ("blur", "gt"):
            for number in (1, 10):
                path = tmp_path / scene / kind / f"{kind}_{number}.png"
                write(path, noise(8, 8, number + len(kind)))
    pairs = load_pairs(tmp_path, 1)
    assert [pair.name for pair in pairs[:2]] == ["scene001/1", "scene001/10"]
    assert len(pairs) == 4
    np.testing.assert_array_equal(pairs[1].lq, noise(8, 8, 10 + len("blur")))
    np.testing.assert_array_equal(pairs[1].hq, noise(8, 8, 10 + len("gt")))


def test_train_and_test_are_not_mixed(tmp_path):
    for split in ("train", "test"):
        for kind in ("blur", "sharp"):
            write(tmp_path / split / "GOPR1" / kind / "1.png")
    with pytest.raises(ValueError, match="holds test and train; expected one of them"):
        load_pairs(tmp_path, 1)
    assert len(load_pairs(tmp_path / "test", 1)) == 1


def test_rain13ks_test_sets_are_five(tmp_path):
    names = ["Test100", "Rain100H", "Rain100L", "Test2800", "Test1200"]
    for name in names:
        for kind in ("input", "target"):
            write(tmp_path / name / kind / "1.png")
    assert list(open_sets([tmp_path], 1)) == names
    assert [len(pairs) for pairs in open_sets([tmp_path], 1).values()] == [1] * 5
    assert sets_in(tmp_path / "Rain100L") == [tmp_path / "Rain100L"]
    with pytest.raises(ValueError, match="Rain100L, Rain100L; expected different names"):
        open_sets([tmp_path / "Rain100L"] * 2, 1)


def test_sub_images_stand_for_their_images(tmp_path):
    for kind in ("blur", "sharp"):
        write(tmp_path / "GOPR1" / kind / "1.png")
        write(tmp_path / f"{kind}_crops" / "GOPR1-1_s001.png")
    assert [files.name for files in find_pairs(tmp_path, 1)] == ["GOPR1-1_s001"]
    assert [files.name for files in find_pairs(tmp_path, 1, parts=False)] == ["GOPR1/1"]
    write(tmp_path / "DIV2K_train_HR" / "0001.png")
    write(tmp_path / "DIV2K_train_HR_sub" / "0001_s001.png")
    write(tmp_path / "DIV2K_train_LR_bicubic" / "X2_sub" / "0001_s001.png", noise(4, 4))
    assert [files.name for files in find_pairs(tmp_path, 2)] == ["0001_s001"]
    (tmp_path / UNFINISHED).touch()
    for scale in (1, 2):
        with pytest.raises(ValueError, match=rf"{UNFINISHED}: sub-images are unfinished"):
            find_pairs(tmp_path, scale)


@pytest.mark.parametrize("suffix", ["", "x2"])
def test_basicsrs_test_sets(suffix, tmp_path):
    root = tmp_path / "Set5"
    for name in ("baby", "bird"):
        write(root / "GTmod12" / f"{name}.png", noise(12, 24, len(name)))
        write(root / "LRbicx2" / f"{name}{suffix}.png", noise(6, 12, 9))
        write(root / "LRbicx4" / f"{name}.png", noise(3, 6, 9))
        write(root / "original" / f"{name}.png", noise(13, 25))
    pairs = open_sets([root], 2)["Set5"]
    assert [pair.name for pair in pairs] == ["baby", "bird"]
    np.testing.assert_array_equal(pairs[0].hq, noise(12, 24, len("baby")))
    np.testing.assert_array_equal(pairs[0].lq, noise(6, 12, 9))
    ((_, hq, lq), _) = find_pairs(root, 3)  # no LR of this scale
    assert (hq, lq) == (root / "GTmod12" / "baby.png", None)


class TestDIV2K:
    def test_sub_images_only_where_lr_was_cut_too(self, tmp_path):
        hr, lr = tmp_path / "DIV2K_train_HR", tmp_path / "DIV2K_train_LR_bicubic"
        write(hr / "0001.png")
        sub = write(tmp_path / "DIV2K_train_HR_sub" / "0001_s001.png")
        cut = write(lr / "X2_sub" / "0001_s001.png", noise(4, 4))
        official = write(lr / "X4" / "0001x4.png", noise(2, 2))
        assert find_pairs(tmp_path, 2) == [("0001_s001", sub, cut)]
        assert find_pairs(tmp_path, 4) == [("0001", hr / "0001.png", official)]
        assert find_pairs(tmp_path, 3) == [("0001_s001", sub, None)]  # no LR at all

    def test_what_is_scored_is_held_out(self, tmp_path):
        for kind, number in (("train", 1), ("valid", 801)):
            write(tmp_path / f"DIV2K_{kind}_HR" / f"{number:04}.png", noise(8, 8))
            write(tmp_path / f"DIV2K_{kind}_LR_bicubic/X2/{number:04}x2.png", noise(4, 4))
        assert [pair.name for pair in open_pairs(tmp_path, 2)] == ["0001"]
        assert [pair.name for pair in load_pairs(tmp_path, 2)] == ["0001"]
        for memory in (1, 0):
            scored = open_sets([tmp_path], 2, memory=memory)[tmp_path.name]
            assert [pair.name for pair in scored] == ["0801"]
        (tmp_path / "DIV2K_valid_HR").rename(tmp_path / "elsewhere")
        assert [pair.name for pair in open_sets([tmp_path], 2)[tmp_path.name]] == ["0001"]


class TestWhatIsWrong:
    def test_no_pairs(self, tmp_path):
        with pytest.raises(ValueError, match="absent: found nothing; expected a folder"):
            load_pairs(tmp_path / "absent", 1)
        write(tmp_path / "a.png")
        message = "found no pairs; expected folders input with target or gt, blur with sharp or gt"
        with pytest.raises(ValueError, match=message):
            load_pairs(tmp_path, 1)
        write(tmp_path / "input" / "a.png")
        with pytest.raises(ValueError, match=message):
            load_pairs(tmp_path, 1)

    @pytest.mark.parametrize(("more", "lacking"), [("input", "target"), ("target", "input")])
    def test_an_image_without_its_partner(self, more, lacking, tmp_path):
        for kind in ("input", "target"):
            write(tmp_path / kind / "a.png")
        extra = write(tmp_path / more / "b.png")
        with pytest.raises(ValueError, match=rf"b\.png: no partner; expected .*{lacking}.b"):
            load_pairs(tmp_path, 1)
        extra.unlink()
        assert len(load_pairs(tmp_path, 1)) == 1

    def test_sizes_that_differ(self, tmp_path):
        write(tmp_path / "input" / "a.png", noise(8, 6))
        write(tmp_path / "target" / "a.png", noise(8, 8))
        with pytest.raises(ValueError, match=r"it is 8x8, .*a\.png is 6x8; expected 8x8"):
            load_pairs(tmp_path, 1)


def test_images_alone_are_degraded_where_that_is_wanted(tmp_path):
    write(tmp_path / "a.png", noise(40, 40))
    ((name, lq, hq),) = load_pairs(tmp_path, 1, degradation=camera_motion)
    assert name == "a"
    np.testing.assert_array_equal(hq, noise(40, 40))
    assert not np.array_equal(lq, hq)
    (again,) = load_pairs(tmp_path, 1, degradation=camera_motion)
    np.testing.assert_array_equal(again.lq, lq)
    for kind in ("blur", "sharp"):  # pairs are pairs
        write(tmp_path / "pairs" / kind / "a.png", noise(8, 8, len(kind)))
    ((_, lq, _),) = load_pairs(tmp_path / "pairs", 1, degradation=camera_motion)
    np.testing.assert_array_equal(lq, noise(8, 8, len("blur")))


class TestSetsTooLargeForMemory:
    @pytest.fixture
    def folder(self, tmp_path):
        for seed, name in enumerate("abc"):
            write(tmp_path / "HR" / f"{name}.png", noise(33, 40 + 2 * seed, seed))
            write(tmp_path / "LR_bicubic" / "X2" / f"{name}.png", noise(16, 20 + seed, 9 + seed))
        return tmp_path

    def test_they_give_the_same_crops(self, folder):
        loaded, files = (open_pairs(folder, 2, memory=gigabytes) for gigabytes in (1, 0))
        assert isinstance(files, PairFiles)
        assert isinstance(loaded, list)
        assert len(files) == 3
        one, other = (
            RandomCrops(pairs, crop=8, scale=2, length=20, seed=0) for pairs in (loaded, files)
        )
        for a, b in zip(one, other, strict=True):
            assert all(map(np.array_equal, a, b))

    def test_memory_is_counted_in_bytes_of_pixels(self, folder):
        pixels = 16 * (20 + 21 + 22)
        need = 3 * (pixels + 4 * pixels) / 1e9
        assert isinstance(open_pairs(folder, 2, memory=need * 1.001), list)
        assert isinstance(open_pairs(folder, 2, memory=need * 0.999), PairFiles)

    def test_what_has_no_header_is_named_or_left_out(self, folder, capsys):
        (folder / "HR" / "b.png").write_text("no image")
        with pytest.raises(ValueError, match=r"b\.png: .*--skip-bad"):
            open_pairs(folder, 2, memory=0)
        assert [p.name for p in open_pairs(folder, 2, memory=0, skip_bad=True)] == ["a", "c"]
        assert "left out" in capsys.readouterr().err


class TestCrops:
    def test_small_images_are_mirrored_at_two_borders(self):
        image = noise(5, 12)
        pair = Pair("a", image, image)
        with pytest.raises(ValueError, match="12x5; expected 8x8"):
            RandomCrops([pair], crop=8, scale=1, length=1, seed=0)
        crops = RandomCrops([pair], crop=8, scale=1, length=30, seed=0, mirror=True)
        tall = np.concatenate([image, image[::-1]])[:8]
        windows = {tall[:, x : x + 8].tobytes() for x in range(5)}
        for lq, hq in crops:
            assert lq.shape == hq.shape == (3, 8, 8)
            crop = np.rint(lq.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
            turned = [np.rot90(crop, k) for k in range(4)]
            seen = {t.tobytes() for t in (*turned, *(t[:, ::-1] for t in turned))}
            assert seen & windows

    def test_without_quarter_turns_rows_stay_rows(self):
        image = np.arange(16, dtype=np.uint8).reshape(16, 1, 1) * np.ones((1, 16, 3), np.uint8)
        pair = Pair("a", image, image)
        crops = RandomCrops([pair], crop=8, scale=1, length=40, seed=0, quarter_turns=False)
        rows = [lq[0, :, 0] for lq, _ in crops]
        assert all((lq == lq[:, :, :1]).all() for lq, _ in crops)
        assert {bool(row[0] < row[-1]) for row in rows} == {True, False}
