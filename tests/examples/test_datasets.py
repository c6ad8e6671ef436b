"""Data sets as users have them on disk: every layout, and their usual damages."""

import numpy as np
import pytest
from PIL import Image as Pillow
from restoration.data.crops import RandomCrops
from restoration.data.datasets import (
    PairFiles,
    load_pairs,
    open_pairs,
    open_sets,
    pairs_from_images,
)
from restoration.data.images import BadImageError, list_images, photographs, read_image
from restoration.data.layouts import UNFINISHED, find_pairs, sets_in
from restoration.data.synthetic import camera_motion, matlab_bicubic


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width, seed=0):
    return matlab_bicubic(noise(height // 4, width // 4, seed), 4)


def write(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(noise(8, 8) if pixels is None else pixels).save(path)
    return path


def tree(root, **sides):
    """Images by their path, '__' for '/', of (height, width) or of a side; smooth ones."""
    for number, (name, size) in enumerate(sides.items()):
        height, width = size if isinstance(size, tuple) else (size, size)
        write(root / f"{name.replace('__', '/')}.png", noise(height, width, number))
    return root


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def names(pairs):
    return [pair.name for pair in pairs]


class TestReadImage:
    def test_rgb_is_exact(self, tmp_path):
        path = write(tmp_path / "a.png", noise(5, 7))
        np.testing.assert_array_equal(read_image(path), noise(5, 7))

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
    def test_other_modes_become_rgb(self, tmp_path, mode):
        image = Pillow.fromarray(np.full((4, 6, 3), 255, np.uint8)).convert(mode)
        if mode.endswith("A"):
            image.putalpha(0)  # transparent white must stay white, not become black
        image.save(tmp_path / "a.png")
        out = read_image(tmp_path / "a.png")
        assert (out.dtype, out.shape) == (np.uint8, (4, 6, 3))
        assert (out == 255).all()

    def test_what_is_no_such_image_is_named(self, tmp_path):
        write(tmp_path / "a.png", np.full((4, 4), 40_000, np.uint16))
        (tmp_path / "page.png").write_text("<html>404</html>")
        for suffix in (".png", ".jpg"):
            truncate(write(tmp_path / f"half{suffix}", noise(64, 64)))
        for name, message in (
            ("a.png", r"I;16 pixels, expected 8 bits"),  # not clipped
            *(("half.png", "cannot be read .*truncated"), ("half.jpg", "cannot be .*truncated")),
            *(("page.png", "cannot identify"), ("absent.png", "No such file")),
        ):
            with pytest.raises(BadImageError, match=rf"{name}: .*{message}"):
                read_image(tmp_path / name)


def test_photographs():
    train, held_out = photographs("train"), photographs("held_out")
    assert sorted(held_out) == ["chelsea", "coffee", "rocket"]
    assert len(train) == 8
    assert {"motorcycle_left", "motorcycle_right"} <= set(train)
    for image in (*train.values(), *held_out.values()):
        assert (image.dtype, image.shape[2], image.ndim) == (np.uint8, 3, 3)
        assert min(image.shape[:2]) >= 300
        assert image.std() > 10
    with pytest.raises(ValueError, match="'test'; expected one of train, held_out"):
        photographs("test")


class TestSuperResolution:
    @pytest.mark.parametrize(
        ("hr", "lr", "scale"),
        [
            ("HR/a.png", "LR_bicubic/X2/ax2.png", 2),
            ("HR/a.bmp", "LR_bicubic/X2/a.png", 2),
            ("DIV2K_train_HR/a.png", "DIV2K_train_LR_bicubic/X3/ax3.png", 3),
            ("GTmod12/a.png", "LRbicx2/a.png", 2),
            ("GTmod12/a.png", "LRbicx2/ax2.png", 2),
        ],
    )
    def test_hr_with_lr(self, hr, lr, scale, tmp_path):
        high, low = noise(4 * scale + 1, 6 * scale + 1), noise(4, 6, seed=1)
        write(tmp_path / hr, high)
        write(tmp_path / lr, low)
        ((name, seen_lr, seen_hr),) = load_pairs(tmp_path, scale)
        assert name == "a"
        np.testing.assert_array_equal(seen_lr, low)
        np.testing.assert_array_equal(seen_hr, high[: 4 * scale, : 6 * scale])
        assert find_pairs(tmp_path, 4) == [("a", tmp_path / hr, None)], "LR of another scale"

    def test_lr_that_is_not_there_is_made(self, tmp_path):
        tree(tmp_path, HR__a=12, LR_bicubic__X2__a=6)
        expected = matlab_bicubic(noise(12, 12), 1 / 3)
        np.testing.assert_array_equal(load_pairs(tmp_path, 3)[0].lq, expected)

    def test_plain_folder_is_searched_and_degraded(self, tmp_path):
        write(tmp_path / "b.png", noise(9, 9))
        write(tmp_path / "deep/er/a.JPG", noise(16, 16))
        (tmp_path / "readme.txt").write_text("no image")
        (tmp_path / "._b.png").write_bytes(b"macOS leaves such files behind")
        pairs = load_pairs(str(tmp_path), 2)
        assert names(pairs) == ["b", "deep/er/a"]
        assert pairs[0].hq.shape == (8, 8, 3)
        np.testing.assert_array_equal(pairs[0].lq, matlab_bicubic(noise(9, 9)[:8, :8], 1 / 2))

    def test_images_in_memory(self):
        (pair,) = pairs_from_images({"a": noise(11, 10)}, 4)
        assert (pair.name, pair.hq.shape) == ("a", (8, 8, 3))
        np.testing.assert_array_equal(pair.lq, matlab_bicubic(noise(11, 10)[:8, :8], 1 / 4))

    def test_of_div2k_sub_images_only_where_lr_was_cut_too(self, tmp_path):
        tree(tmp_path, DIV2K_train_HR__0001=8, DIV2K_train_HR_sub__0001_s001=8)
        tree(tmp_path, DIV2K_train_LR_bicubic__X2_sub__0001_s001=4)
        tree(tmp_path, DIV2K_train_LR_bicubic__X4__0001x4=2)
        hr, sub = tmp_path / "DIV2K_train_HR", tmp_path / "DIV2K_train_HR_sub" / "0001_s001.png"
        lr = tmp_path / "DIV2K_train_LR_bicubic"
        assert find_pairs(tmp_path, 2) == [("0001_s001", sub, lr / "X2_sub" / "0001_s001.png")]
        assert find_pairs(tmp_path, 4) == [("0001", hr / "0001.png", lr / "X4" / "0001x4.png")]
        assert find_pairs(tmp_path, 3) == [("0001_s001", sub, None)]  # no LR at all

    def test_of_div2k_what_is_scored_is_held_out(self, tmp_path):
        for kind, number in (("train", 1), ("valid", 801)):
            write(tmp_path / f"DIV2K_{kind}_HR" / f"{number:04}.png", noise(16, 16))
            write(tmp_path / f"DIV2K_{kind}_LR_bicubic/X2/{number:04}x2.png", noise(8, 8))
        assert names(open_pairs(tmp_path, 2)) == names(load_pairs(tmp_path, 2)) == ["0001"]
        for memory in (1, 0):
            assert names(open_sets([tmp_path], "sr", 2, memory=memory)[tmp_path.name]) == ["0801"]
        (tmp_path / "DIV2K_valid_HR").rename(tmp_path / "elsewhere")
        assert names(open_sets([tmp_path], "sr", 2)[tmp_path.name]) == ["0001"]


class TestOneSize:
    @pytest.mark.parametrize(
        ("lq", "hq"),
        [
            *(("input", "target"), ("input", "gt"), ("blur", "sharp"), ("blur", "gt")),
            *(("lq", "gt"), ("rain", "norain"), ("rain", "gt"), ("rainy", "gt")),
            ("rainy", "clean"),
        ],
    )
    def test_pairs(self, lq, hq, tmp_path):
        write(tmp_path / lq / "a.png", noise(9, 7, 1))
        write(tmp_path / hq / "a.bmp", noise(9, 7, 2))
        tree(tmp_path, **{f"{lq}__b": 8, f"{hq}__b": 8})
        first, second = load_pairs(tmp_path, 1)
        assert (first.name, second.name) == ("a", "b")
        np.testing.assert_array_equal(first.lq, noise(9, 7, 1))
        np.testing.assert_array_equal(first.hq, noise(9, 7, 2))

    @pytest.mark.parametrize(
        ("kinds", "file", "name"),
        [
            (("blur", "blur_gamma", "sharp"), "000047", "000047"),  # GoPro's sequences
            (("blur", "gt"), "{kind}_10", "10"),  # RealBlur's names begin with their folders
        ],
    )
    def test_folders_below(self, kinds, file, name, tmp_path):
        for scene in ("one", "two"):
            for kind in kinds:
                path = tmp_path / scene / kind / f"{file.format(kind=kind)}.png"
                write(path, noise(8, 8, len(kind)))
        pairs = load_pairs(tmp_path, 1)
        assert names(pairs) == [f"one/{name}", f"two/{name}"]
        np.testing.assert_array_equal(pairs[1].lq, noise(8, 8, len("blur")))
        np.testing.assert_array_equal(pairs[1].hq, noise(8, 8, len(kinds[-1])))

    def test_train_and_test_are_not_mixed(self, tmp_path):
        for split in ("train", "test"):
            tree(tmp_path, **{f"{split}__GOPR1__{kind}__1": 8 for kind in ("blur", "sharp")})
        with pytest.raises(ValueError, match="holds test and train; expected one of them"):
            load_pairs(tmp_path, 1)
        assert len(load_pairs(tmp_path / "test", 1)) == 1

    def test_rain13ks_test_sets_are_five(self, tmp_path):
        sets = ["Test100", "Rain100H", "Rain100L", "Test2800", "Test1200"]
        for name in sets:
            tree(tmp_path, **{f"{name}__input__1": 11, f"{name}__target__1": 11})
        opened = open_sets([tmp_path], "derain", 1)
        assert {name: len(pairs) for name, pairs in opened.items()} == dict.fromkeys(sets, 1)
        assert list(opened) == sets
        assert sets_in(tmp_path / "Rain100L") == [tmp_path / "Rain100L"]
        with pytest.raises(ValueError, match="Rain100L, Rain100L; expected different names"):
            open_sets([tmp_path / "Rain100L"] * 2, "derain", 1)

    def test_images_alone_are_degraded_where_that_is_wanted(self, tmp_path):
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


def test_sub_images_stand_for_their_images(tmp_path):
    tree(tmp_path, GOPR1__blur__1=8, GOPR1__sharp__1=8)
    write(tmp_path / "blur_crops" / "GOPR1-1_s001.png")
    write(tmp_path / "sharp_crops" / "GOPR1-1_s001.png")
    assert names(find_pairs(tmp_path, 1)) == ["GOPR1-1_s001"]
    assert names(find_pairs(tmp_path, 1, parts=False)) == ["GOPR1/1"]
    tree(tmp_path, DIV2K_train_HR__0001=8)
    (tmp_path / UNFINISHED).touch()
    for scale in (1, 2):
        with pytest.raises(ValueError, match=rf"{UNFINISHED}: sub-images are unfinished"):
            find_pairs(tmp_path, scale)


@pytest.mark.parametrize(
    ("files", "folder", "scale", "message"),
    [
        ({}, "absent", 2, "absent: found nothing; expected a folder"),
        ({}, "absent", 1, "absent: found nothing; expected a folder"),
        ({"a": 4}, "a.png", 2, r"a\.png: found a file; expected a folder"),
        (
            {"HR__a": 8, "HR__b": 8, "LR_bicubic__X2__a": 4},
            *("", 2, r"b\.png: no LR image; expected .*X2.b or bx2"),
        ),
        (
            {"HR__a": (12, 24), "LR_bicubic__X2__a": (4, 8)},
            *("", 2, r"a\.png: HR is 24x12, .*a\.png is 8x4; expected 12x6 for scale 2"),
        ),
        ({"a": (3, 9)}, "", 4, r"a\.png: HR is 9x3; expected at least 4 a side"),
        ({"a": (3, 9)}, "", 0, "scale 0; expected 1 or more"),
        (
            {"Set5__HR__a": 8, "Set5__LR_bicubic__X2__a": 4},
            *("", 2, "LR_bicubic: named as LR images are; expected"),
        ),
        ({"a": 8}, "", 1, "found no pairs; expected folders input with target or gt, blur with sh"),
        ({"input__a": 8}, "", 1, "found no pairs; expected folders input with target or gt, blur"),
        (
            {"input__a": 8, "target__a": 8, "input__b": 8},
            *("", 1, r"b\.png: no partner; expected .*target.b"),
        ),
        (
            {"input__a": 8, "target__a": 8, "target__b": 8},
            *("", 1, r"b\.png: no partner; expected .*input.b"),
        ),
        (
            {"input__a": (8, 6), "target__a": (8, 8)},
            *("", 1, r"it is 8x8, .*a\.png is 6x8; expected 8x8"),
        ),
    ],
)
def test_what_is_wrong_on_disk(files, folder, scale, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_pairs(tree(tmp_path, **files) / folder, scale)


def test_no_image_and_two_of_one_name(tmp_path):
    with pytest.raises(ValueError, match=r"found no image; expected files .*\.png"):
        list_images(tmp_path)
    for suffix in ("png", "jpg"):
        write(tmp_path / f"a.{suffix}")
    with pytest.raises(ValueError, match=r"a\.png and a\.jpg share a name"):
        load_pairs(tmp_path, 2)


class TestUnreadableImages:
    def test_they_stop_or_are_skipped(self, tmp_path, capsys):
        write(tmp_path / "a.png", noise(32, 32))
        truncate(write(tmp_path / "b.png", noise(64, 64)))
        with pytest.raises(BadImageError, match=r"b\.png: .*truncated.*--skip-bad"):
            load_pairs(tmp_path, 2)
        assert names(load_pairs(tmp_path, 2, skip_bad=True)) == ["a"]
        assert "warning: left out" in (warning := capsys.readouterr().err)
        assert "b.png" in warning

    def test_a_truncated_lr_is_a_bad_image_too(self, tmp_path):
        write(tmp_path / "HR/a.png", noise(128, 128))
        truncate(write(tmp_path / "LR_bicubic/X2/a.png", noise(64, 64)))
        with pytest.raises(BadImageError, match=r"X2.a\.png: "):
            load_pairs(tmp_path, 2)
        with pytest.raises(ValueError, match="every image is unreadable"):
            load_pairs(tmp_path, 2, skip_bad=True)


class TestSetsTooLargeForMemory:
    @pytest.fixture
    def folder(self, tmp_path):
        for seed, name in enumerate("abc"):
            write(tmp_path / "HR" / f"{name}.png", noise(33, 40 + 2 * seed, seed))
            write(tmp_path / "LR_bicubic" / "X2" / f"{name}.png", noise(16, 20 + seed, 9 + seed))
        return tmp_path

    def test_they_give_the_same_crops(self, folder):
        loaded, files = (open_pairs(folder, 2, memory=gigabytes) for gigabytes in (1, 0))
        assert (type(loaded), type(files), len(files)) == (list, PairFiles, 3)
        settings = {"crop": 8, "scale": 2, "length": 20, "seed": 0}
        one, other = (RandomCrops(pairs, **settings) for pairs in (loaded, files))
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
        assert names(open_pairs(folder, 2, memory=0, skip_bad=True)) == ["a", "c"]
        assert "left out" in capsys.readouterr().err


class TestGroundTruths:
    """Of folders without pairs: low-quality images do not pass for ground truths."""

    @pytest.mark.parametrize(
        "name",
        [
            *("LR", "lr_x4", "LRbicx3", "LRBI", "DIV2K_train_LR_unknown", "Flickr2K_LR_bicubic"),
            *("X2", "x4_sub", "bicubic", "Bicubic_4"),
        ],
    )
    def test_folders_named_as_lr_images_are(self, name, tmp_path):
        write(tmp_path / "originals" / "a.png", smooth(16, 16))
        write(tmp_path / "Set5" / name / "b.png", smooth(16, 16, 1))
        message = rf"{name}: named as LR images are; expected the folder that holds HR and LR"
        with pytest.raises(ValueError, match=message):
            load_pairs(tmp_path, 2)
        assert len(load_pairs(tmp_path / "originals", 2)) == 1
        assert len(load_pairs(tmp_path / "Set5" / name, 2)) == 1  # asked for

    @pytest.mark.parametrize("name", ["train", "Urban100", "LRS3", "x-ray", "clear"])
    def test_other_names_are_just_names(self, name, tmp_path):
        write(tmp_path / name / "a.png", smooth(16, 16))
        write(tmp_path / "other" / "b.png", smooth(16, 16, 1))
        assert names(load_pairs(tmp_path, 2)) == sorted([f"{name}/a", "other/b"])

    @pytest.mark.parametrize(("scale", "suffix"), [(2, ""), (3, "x3"), (4, "x4")])
    def test_images_made_smaller(self, scale, suffix, tmp_path):
        """Whatever the folders are called, and though the larger one's sides are no multiples."""
        for seed, name in enumerate(("img1", "img10")):
            large = smooth(48, 64, seed)[:47, :62]
            write(tmp_path / "high" / f"{name}.png", large)
            whole = large[: 47 // scale * scale, : 62 // scale * scale]
            write(tmp_path / "low" / f"{name}{suffix}.png", matlab_bicubic(whole, 1 / scale))
        with pytest.raises(ValueError, match=r"img1.*\.png: found to be .*img1\.png made smaller"):
            load_pairs(tmp_path, 2)
        assert len(load_pairs(tmp_path / "high", 2)) == 2

    def test_sequences_may_have_the_same_names_and_any_sizes(self, tmp_path):
        for number, (height, width) in enumerate([(32, 48), (16, 24), (32, 48)]):
            write(tmp_path / f"00{number}" / "00000001.png", smooth(height, width, number))
        write(tmp_path / "003" / "00000001.png", np.zeros((8, 12, 3), np.uint8))
        assert len(load_pairs(tmp_path, 2)) == 4

    def test_a_file_that_is_no_image_is_left_to_the_reader(self, tmp_path):
        write(tmp_path / "a" / "1.png", smooth(32, 32))
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "1.png").write_text("no image")
        assert names(load_pairs(tmp_path, 2, skip_bad=True)) == ["a/1"]

    @pytest.mark.parametrize(("lq", "hq"), [("LQ", "GT"), ("data", "gt"), ("blurry", "sharp")])
    def test_ground_truths_beside_something_else(self, lq, hq, tmp_path):
        """Of a deraining set, say, whose rainy images would be rained on once more."""
        write(tmp_path / lq / "1.png", smooth(16, 16))
        write(tmp_path / hq / "1.png", smooth(16, 16, 1))
        message = rf"{hq}: found beside {lq}; expected pairs in folders by names in examples/README"
        for scale, degradation in ((1, camera_motion), (2, None)):
            with pytest.raises(ValueError, match=message):
                load_pairs(tmp_path, scale, degradation=degradation)
            assert len(load_pairs(tmp_path / hq, scale, degradation=degradation)) == 1
        write(tmp_path / "2.png", smooth(16, 16))
        (tmp_path / lq / "1.png").unlink()
        (tmp_path / lq).rmdir()
        with pytest.raises(ValueError, match=rf"{hq}: found beside 2\.png"):
            load_pairs(tmp_path, 1, degradation=camera_motion)

    def test_alone_they_may_lie_deep(self, tmp_path):
        """GoPro's, for instance, of which somebody has kept the sharp ones."""
        tree(tmp_path, GOPR1__sharp__1=16, GOPR2__sharp__1=16)
        assert len(load_pairs(tmp_path, 1, degradation=camera_motion)) == 2
