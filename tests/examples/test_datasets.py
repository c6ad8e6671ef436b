"""Data sets as users have them on disk: every layout, and their usual damages."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from restoration.data.crops import RandomCrops
from restoration.data.datasets import made, open_pairs, open_sets, pairs_from_images
from restoration.data.images import (
    BadImageError,
    image_size,
    list_images,
    photographs,
    read_image,
)
from restoration.data.layouts import UNFINISHED, TwoFolders, find_pairs, sets_in
from restoration.data.synthetic import camera_motion, matlab_bicubic
from restoration.results.metrics import protocol
from toys import noise


def smooth(height, width, seed=0):
    return matlab_bicubic(noise(height // 4, width // 4, seed), 4)


def write(path, pixels=None, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(noise(8, 8) if pixels is None else pixels).save(path, **how)
    return path


def tree(root, files):
    """Images by their paths: of 8x8 pixels, or of the side, or height and width, after a colon."""
    for number, file in enumerate(files.split()):
        name, _, size = file.partition(":")
        height, _, width = (size or "8").partition("x")
        pixels = noise(int(height), int(width or height), number)
        write(root / (name if Path(name).suffix else f"{name}.png"), pixels)
    return root


def png_of_16_bits(rgb):
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    header = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        check = zlib.crc32(name + content)
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
    return data


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def names(pairs):
    return [pair.name for pair in pairs]


def found(root, scale):
    """Pairs by name, ground truth and low-quality image, in this folder."""
    return [
        (name, *(path and path.relative_to(root).as_posix() for path in paths))
        for name, *paths in find_pairs(root, scale, alone=True)
    ]


class TestReadImage:
    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
    def test_other_modes_become_rgb(self, tmp_path, mode):
        image = Pillow.fromarray(np.full((4, 6, 3), 255, np.uint8)).convert(mode)
        if mode.endswith("A"):
            image.putalpha(0)  # transparent white must stay white, not become black
        image.save(tmp_path / "a.png")
        out = read_image(tmp_path / "a.png")
        assert (out.dtype, out.shape) == (np.uint8, (4, 6, 3))
        assert (out == 255).all()

    @pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
    def test_orientation(self, suffix, tmp_path):
        image = Pillow.fromarray(smooth(40, 56))
        for orientation, turn in {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.items():
            exif = Pillow.Exif()
            exif[0x0112] = orientation
            image.save(tmp_path / f"a.{suffix}", exif=exif, quality=98)
            out = read_image(tmp_path / f"a.{suffix}")
            expected = image if turn is None else image.transpose(Pillow.Transpose(turn))
            assert image_size(tmp_path / f"a.{suffix}") == out.shape[:2] == expected.size[::-1]
            assert np.abs(out.astype(int) - np.asarray(expected)).mean() < 16

    def test_orientation_at_a_pngs_end(self, tmp_path):
        exif = Pillow.Exif()
        exif[0x0112] = 6
        path = write(tmp_path / "a.png", noise(5, 7), exif=exif)
        data = path.read_bytes()
        begin = data.index(b"eXIf") - 4
        end = begin + 12 + int.from_bytes(data[begin : begin + 4], "big")
        last = data.index(b"IEND") - 4
        path.write_bytes(data[:begin] + data[end:last] + data[begin:end] + data[last:])
        assert image_size(path) == (7, 5)
        np.testing.assert_array_equal(read_image(path), np.rot90(noise(5, 7), -1))

    def test_a_png_is_measured_without_its_pixels(self, tmp_path):
        truncate(write(tmp_path / "a.png", noise(64, 80)))
        assert image_size(tmp_path / "a.png") == (64, 80)

    def test_what_is_no_such_image_is_named(self, tmp_path):
        cases = {"absent.png": "No such file", "page.png": "cannot identify"}
        (tmp_path / "page.png").write_text("<html>404</html>")
        for suffix in (".png", ".jpg"):
            truncate(write(tmp_path / f"half{suffix}", noise(64, 64)))
            cases[f"half{suffix}"] = "truncated"
        for name, message in cases.items():
            with pytest.raises(BadImageError, match=rf"{name}: cannot be read .*{message}"):
                read_image(tmp_path / name)

    def test_what_would_be_read_wrong_is_named_by_either(self, tmp_path):
        deep, gray = np.full((4, 4), 40_000, np.uint16), Pillow.new("L", (4, 4))
        write(tmp_path / "gray16.png", deep)
        write(tmp_path / "gray16.tif", deep)
        write(tmp_path / "float.tif", deep.astype(np.float32))
        rgb = np.repeat(deep[..., None], 3, axis=2)  # Pillow would read these as 8 bits
        (tmp_path / "rgb16.png").write_bytes(png_of_16_bits(rgb))
        pytest.importorskip("tifffile").imwrite(tmp_path / "rgb16.tif", rgb, photometric="rgb")
        Pillow.new("CMYK", (4, 4)).save(tmp_path / "cmyk.jpg")
        Pillow.new("LAB", (4, 4)).save(tmp_path / "lab.tif")
        for name in ("pages.tif", "moving.webp", "moving.png"):
            more = [Pillow.new("L", (4, 4), 255)]
            gray.save(tmp_path / name, save_all=True, append_images=more)
        messages = {"gray": "8 bits", "float": "8 bits", "rgb16": "8 bits", "cmyk": "CMYK colours"}
        messages |= {"lab": "LAB colours", "pages": "2 frames", "moving": "2 frames"}
        for path in sorted(tmp_path.iterdir()):
            message = next(text for begin, text in messages.items() if path.name.startswith(begin))
            for read in (read_image, image_size):
                with pytest.raises(BadImageError, match=rf"{path.name}: .*{message}"):
                    read(path)


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


class TestWalk:
    def test_links_are_followed_once(self, tmp_path):
        tree(tmp_path / "elsewhere", "a deep/b")
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "set" / "image.png").symlink_to(tmp_path / "elsewhere" / "a.png")
        (tmp_path / "elsewhere" / "deep" / "loop").symlink_to(tmp_path / "set")
        seen = [
            path.relative_to(tmp_path / "set").as_posix() for path in list_images(tmp_path / "set")
        ]
        assert seen == ["image.png", "link/a.png", "link/deep/b.png"]
        (tmp_path / "set" / "gone").symlink_to(tmp_path / "nowhere")
        with pytest.raises(ValueError, match="gone: this link leads nowhere"):
            list_images(tmp_path / "set")

    def test_helpers_of_systems_are_passed_over(self, tmp_path):
        tree(tmp_path, "a .hidden.png .ipynb_checkpoints/a-checkpoint .git/b @eaDir/a __MACOSX/a")
        tree(tmp_path, "deep/.thumbnails/c")
        for name in ("._a.png", "Thumbs.db", "deep/.DS_Store", "readme.txt"):
            (tmp_path / name).write_bytes(b"no image")
        assert list_images(tmp_path) == [tmp_path / "a.png"]

    def test_refusals(self, tmp_path):
        for reads in (list_images, lambda folder: open_pairs(folder, 2)):
            with pytest.raises(ValueError, match="empty path"):
                reads("")
        with pytest.raises(ValueError, match=r"found no image; expected files .*\.png"):
            list_images(tmp_path)
        tree(tmp_path, "a.png a.jpg")
        with pytest.raises(ValueError, match=r"a\.png and a\.jpg share|a\.jpg and a\.png share"):
            open_pairs(tmp_path, 2)


class TestPairs:
    @pytest.mark.parametrize(
        ("hr", "lr", "scale"),
        [
            ("HR/a.png", "LR_bicubic/X2/ax2.png", 2),
            ("HR/a.bmp", "LR_bicubic/x2/a.png", 2),
            *(("HR/a.png", f"{lr}/a.png", 2) for lr in ("LR", "lr_x2", "LRBI", "input", "2x")),
            ("DIV2K_train_HR/a.png", "DIV2K_train_LR_bicubic/X3/ax3.png", 3),
            ("GTmod12/a.png", "LRbicx2/ax2.png", 2),
            ("GTmod12/a.png", "LRbicx4/a.png", 4),
            ("Set5/original/a.png", "Set5/LR_bicubic/X2/a.png", 2),
            ("a.png", "LR/ax2.png", 2),
        ],
    )
    def test_of_a_scale(self, hr, lr, scale, tmp_path):
        high, low = noise(4 * scale + 1, 6 * scale + 1), noise(4, 6, seed=1)
        write(tmp_path / hr, high)
        write(tmp_path / lr, low)
        pairs = open_pairs(tmp_path, scale)
        ((name, seen_lr, seen_hr),) = pairs
        assert name == ("Set5/a" if "Set5" in hr else "a")
        np.testing.assert_array_equal(seen_lr, low)
        np.testing.assert_array_equal(seen_hr, high[: 4 * scale, : 6 * scale])
        assert made("sr", pairs) == ""
        if any(number in Path(lr).parent.as_posix() for number in "234"):
            assert find_pairs(tmp_path, 8) == [(name, tmp_path / hr, None)], "LR of another scale"

    @pytest.mark.parametrize(
        ("lq", "hq", "expected"),
        [
            *(("input", kind, "") for kind in ("target", "gt", "groundtruth", "ground_truth")),
            *(("blur", "sharp", ""), ("blur", "gt", ""), ("blurry", "GT", ""), ("lq", "gt", "")),
            *(("rain", "norain", ""), ("rainy", "clean", ""), ("rainy_image", "ground_truth", "")),
            *(("hazy", "clear", ""), ("noisy", "original", ""), ("low", "high", "")),
            *(("train_blur", "train_sharp", "train"), ("trainLQ", "trainGT", "train")),
            *(("train_blur/000", "train_sharp/000", "train/000"), ("s/blur", "s/sharp", "s")),
            *(("data", "gt", ""), ("lq", "photos", "photos"), (".", "gt", "")),
        ],
    )
    def test_of_one_size(self, lq, hq, expected, tmp_path):
        for stem, seed in (("1", 1), ("2", 2)):
            write(tmp_path / lq / f"{stem}.png", smooth(32, 48, seed) // 2)
            write(tmp_path / hq / f"{stem}.bmp", smooth(32, 48, seed))
        first, second = open_pairs(tmp_path, 1)
        assert names((first, second)) == [f"{expected}/{n}".strip("/") for n in (1, 2)]
        np.testing.assert_array_equal(first.lq, smooth(32, 48, 1) // 2)
        np.testing.assert_array_equal(second.hq, smooth(32, 48, 2))

    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ("rain/rain-1 norain/norain-1", [("1", "norain/norain-1", "rain/rain-1")]),
            ("a/blur/blur_7 a/gt/gt_7", [("a/7", "a/gt/gt_7", "a/blur/blur_7")]),  # RealBlur
            ("lq/1_lq gt/1", [("1", "gt/1", "lq/1_lq")]),
            ("blur_gamma/1 blurry/1 gt/1", [("1", "gt/1", "blurry/1")]),
            (  # GoPro, whose blur_gamma is not asked for
                "a/blur/1 a/blur_gamma/1 a/sharp/1 b/blur/1 b/blur_gamma/1 b/sharp/1",
                [(f"{s}/1", f"{s}/sharp/1", f"{s}/blur/1") for s in "ab"],
            ),
        ],
    )
    def test_of_names_with_words(self, files, expected, tmp_path):
        tree(tmp_path, files)
        seen = [tuple(part.removesuffix(".png") for part in files) for files in found(tmp_path, 1)]
        assert seen == expected

    def test_of_any_names_by_size(self, tmp_path):
        """Whatever the folders are called, and though HR's sides are no multiples."""
        for seed, name in enumerate(("img1", "img10")):
            large = smooth(64, 80, seed)[:63, :78]
            write(tmp_path / "b" / f"{name}.png", large)
            write(tmp_path / "a" / f"{name}x3.png", matlab_bicubic(large, 1 / 3))
        assert found(tmp_path, 3)[0] == ("b/img1", "b/img1.png", "a/img1x3.png")
        with pytest.raises(ValueError, match=r"a and .*b: which of them holds the ground truths"):
            open_pairs(tmp_path, 2)

    def test_given_outright(self, tmp_path):
        tree(tmp_path, "lq/deep/1:4 lq/2:4 x/deep/1 x/2x4")
        pairs = open_pairs(TwoFolders(tmp_path / "lq", tmp_path / "x"), 2)
        assert names(pairs) == ["2", "deep/1"]
        assert pairs[0].lq.shape == (4, 4, 3)
        alone = open_pairs(TwoFolders(None, tmp_path / "lq"), 2)
        assert (len(alone), alone[0].lq.shape) == (2, (2, 2, 3))
        said = f"no pairs for x2 in {tmp_path / 'lq'}: its images are shrunk by MATLAB's bicubic"
        assert made("sr", alone) == said
        sets = open_sets([TwoFolders(None, tree(tmp_path / "val", "a:32"))], "sr", 2)
        assert list(sets) == ["val"]
        (tmp_path / "x" / "2x4.png").unlink()
        folders = TwoFolders(tmp_path / "lq", tmp_path / "x")
        with pytest.raises(ValueError, match=r"2.png: no partner; .*x.2 \(1 of 2 .*--skip-bad"):
            open_pairs(folders, 2)
        left = open_pairs(folders, 2, skip_bad=True)
        assert (names(left), list(left.left_out)) == (["deep/1"], ["2"])

    def test_unlike_ones_are_told(self, tmp_path, capsys):
        for seed in range(3):
            write(tmp_path / "lq" / f"{seed}.png", smooth(32, 32, seed))
            write(tmp_path / "gt" / f"{seed}.png", smooth(32, 32, seed + 9 * (seed == 1)))
        with pytest.raises(ValueError, match=r"lq.1.png and .*gt.1.png: found to show different"):
            open_pairs(tmp_path, 1)
        assert len(open_pairs(TwoFolders(tmp_path / "lq", tmp_path / "gt"), 1)) == 3
        assert "warning: " in (said := capsys.readouterr().err)
        assert "found to show different things" in said

    def test_rain13ks_test_sets_are_five(self, tmp_path):
        sets = ["Test100", "Rain100H", "Rain100L", "Test2800", "Test1200"]
        for name in sets:
            tree(tmp_path / name, "input/1:11 target/1:11")
        opened = open_sets([tmp_path], "derain", 1)
        assert {name: len(pairs) for name, pairs in opened.items()} == dict.fromkeys(sets, 1)
        assert list(opened) == sets
        assert sets_in(tmp_path / "Rain100L") == [tmp_path / "Rain100L"]
        with pytest.raises(ValueError, match="Rain100L twice; expected each set once"):
            open_sets([tmp_path / "Rain100L"] * 2, "derain", 1)


class TestDIV2K:
    def test_sub_images_only_where_lr_was_cut_too(self, tmp_path):
        hr, lr = "DIV2K_train_HR", "DIV2K_train_LR_bicubic"
        tree(tmp_path, f"{hr}/0001 {hr}_sub/0001_s001 {lr}/X2_sub/0001_s001 {lr}/X4/0001x4")
        sub = f"{hr}_sub/0001_s001.png"
        assert found(tmp_path, 2) == [("0001_s001", sub, f"{lr}/X2_sub/0001_s001.png")]
        assert found(tmp_path, 4) == [("0001", f"{hr}/0001.png", f"{lr}/X4/0001x4.png")]
        assert found(tmp_path, 3) == [("0001_s001", sub, None)]  # no LR at all

    def test_what_is_scored_is_held_out(self, tmp_path):
        for kind, number in (("train", 1), ("valid", 801)):
            write(tmp_path / f"DIV2K_{kind}_HR" / f"{number:04}.png", noise(16, 16))
            lr = tmp_path / f"DIV2K_{kind}_LR_bicubic/X2/{number:04}x2.png"
            write(lr, matlab_bicubic(noise(16, 16), 1 / 2))
        assert names(open_pairs(tmp_path, 2)) == ["0001"]
        for memory in (1, 0):
            assert names(open_sets([tmp_path], "sr", 2, memory=memory)[tmp_path.name]) == ["0801"]
        for kind in ("HR", "LR_bicubic"):
            shutil.rmtree(tmp_path / f"DIV2K_valid_{kind}")
        assert names(open_sets([tmp_path], "sr", 2)[tmp_path.name]) == ["0001"]

    def test_bicubics_lr_is_taken(self, tmp_path):
        kinds = ["LR_bicubic/X2/1x2", "LR_unknown/X2/1x2", "LR_mild/1x4m", "LR_x8/1x8", "HR/1"]
        tree(tmp_path, " ".join(f"DIV2K_train_{kind}" for kind in kinds))
        ((name, _, lq),) = found(tmp_path, 2)
        assert (name, lq) == ("1", "DIV2K_train_LR_bicubic/X2/1x2.png")


def test_sub_images_stand_for_their_images(tmp_path):
    tree(tmp_path, "GOPR1/blur/1 GOPR1/sharp/1")
    tree(tmp_path, "blur_crops/GOPR1-1_s001 sharp_crops/GOPR1-1_s001")
    assert names(find_pairs(tmp_path, 1)) == ["GOPR1-1_s001"]
    assert names(find_pairs(tmp_path, 1, parts=False)) == ["GOPR1/1"]
    (tmp_path / UNFINISHED).touch()
    for scale in (1, 2):
        with pytest.raises(ValueError, match=rf"{UNFINISHED}: sub-images are unfinished"):
            find_pairs(tmp_path, scale)


class TestGroundTruthsAlone:
    def test_lr_that_is_not_there_is_made(self, tmp_path):
        tree(tmp_path, "HR/a:12 LR_bicubic/X2/a:6")
        expected = matlab_bicubic(noise(12, 12), 1 / 3)
        np.testing.assert_array_equal(open_pairs(tmp_path, 3)[0].lq, expected)

    def test_plain_folder_is_searched_and_degraded(self, tmp_path):
        tree(tmp_path, "b:9 deep/er/a.JPG:16")
        pairs = open_pairs(str(tmp_path), 2)
        assert names(pairs) == ["b", "deep/er/a"]
        assert pairs[0].hq.shape == (8, 8, 3)
        np.testing.assert_array_equal(pairs[0].lq, matlab_bicubic(noise(9, 9)[:8, :8], 1 / 2))

    def test_images_in_memory(self):
        (pair,) = pairs_from_images({"a": noise(11, 10)}, 4)
        assert (pair.name, pair.hq.shape) == ("a", (8, 8, 3))
        np.testing.assert_array_equal(pair.lq, matlab_bicubic(noise(11, 10)[:8, :8], 1 / 4))

    def test_a_degradation_follows_from_the_name(self, tmp_path):
        write(tmp_path / "b.png", noise(40, 40))
        ((name, lq, hq),) = open_pairs(tmp_path, 1, degradation=camera_motion)
        assert name == "b"
        np.testing.assert_array_equal(hq, noise(40, 40))
        assert not np.array_equal(lq, hq)
        write(tmp_path / "a.png", noise(40, 40))  # before it
        other, again = open_pairs(tmp_path, 1, degradation=camera_motion, memory=0)
        np.testing.assert_array_equal(again.lq, lq)
        assert not np.array_equal(other.lq, lq)

    def test_sequences_may_have_the_same_names_and_any_sizes(self, tmp_path):
        for number, (height, width) in enumerate([(32, 48), (16, 24), (32, 48)]):
            write(tmp_path / f"00{number}" / "00000001.png", smooth(height, width, number))
        write(tmp_path / "003" / "00000001.png", np.zeros((8, 12, 3), np.uint8))
        (tmp_path / "004").mkdir()
        (tmp_path / "004" / "00000001.png").write_text("no image")
        assert len(open_pairs(tmp_path, 2, skip_bad=True)) == 4
        tree(tmp_path / "GoPro", "GOPR1/sharp/1 GOPR2/sharp/1")
        assert len(open_pairs(tmp_path / "GoPro", 1, degradation=camera_motion)) == 2

    @pytest.mark.parametrize("name", ["train", "Urban100", "LRS3", "x-ray", "Rain100L", "matrix2"])
    def test_other_names_are_just_names(self, name, tmp_path):
        write(tmp_path / name / "a.png", smooth(16, 16))
        write(tmp_path / "other" / "b.png", smooth(16, 16, 1))
        assert names(open_pairs(tmp_path, 2)) == sorted([f"{name}/a", "other/b"])


ALONE = "named as low-quality images are, and found no ground truths for them; give two folders"


LQ_NAMES = "LR lr_x4 LRbicx3 LRBI DIV2K_train_LR_unknown X2 x4_sub Flickr2K_LR_bicubic bicubic"
LQ_NAMES += " Bicubic_4 blur rainy_image"
SEVERAL = "holds several versions of each image, such as"
SPLITS = "train/G/blur/1 train/G/gt/1 test/G/blur/1 test/G/gt/1"


@pytest.mark.parametrize(
    ("files", "scale", "message"),
    [
        (
            "HR/a HR/b LR_bicubic/X2/a:4",
            2,
            r"HR.b\.png: no partner; expected .*LR_bicubic.b \(1 of 2",
        ),
        ("HR/a:12x24 LR_bicubic/X2/a:4x8", 2, r"HR is 24x12, .*a\.png is 8x4; expected 12x6"),
        ("HR/a:16 LR/a:4", 2, "HR is 16x16, .*is 4x4; expected 8x8 for scale 2"),
        ("a:3x9", 4, r"a\.png: HR is 9x3; expected at least 4 a side"),
        ("a:3x9", 0, "scale 0; expected 1 or more"),
        ("a", 1, "found no pairs; expected two versions of each image, .*--lq and --gt"),
        ("input/a", 1, rf"input: {ALONE}"),
        ("1 LR/7", 2, rf"LR: {ALONE}"),
        *((f"originals/a:16 Set5/{n}/b:16", 2, rf"{n}: {ALONE}") for n in LQ_NAMES.split()),
        ("input/a target/a input/b", 1, r"t.b\.png: no partner; expected .*target.b \(1 of 2"),
        ("input/a target/a target/b", 1, r"t.b\.png: no partner; expected .*input.b \("),
        ("input/a:8x6 target/a", 1, r"it is 8x8, .*a\.png is 6x8; expected 8x8"),
        (SPLITS, 1, "holds test and train; expected one of them"),
        ("1 1_LR 2 2_LR", 2, rf"{SEVERAL} 1 and 1_LR"),
        ("x/rain-1 x/norain-1", 1, f"x: {SEVERAL}"),
        ("x/ax2:4 x/ax3:4 y/b:4", 2, f"x: {SEVERAL}"),
        ("gt/1 other/2", 2, "gt and .*other: which of them holds the ground truths"),
        ("clean/1 gt/1 lq/1", 1, "clean and .*gt: which of them"),
        ("blur/1 rain/1 gt/1", 1, "blur and .*rain: which of them"),
        ("lq/1 gt/1 more/7", 1, "more: found no partners of its images, but"),
    ],
)
def test_what_is_refused(files, scale, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_pairs(tree(tmp_path, files), scale)


@pytest.mark.parametrize("scale", [1, 2])
def test_what_is_no_folder_is_refused(scale, tmp_path):
    for name, seen in (("absent", "nothing"), ("a.png", "a file")):
        with pytest.raises(ValueError, match=f"{name}: found {seen}; expected a folder"):
            open_pairs(tree(tmp_path, "a") / name, scale)


def test_two_versions_by_names_that_say_nothing_are_refused(tmp_path):
    for name in ("A", "B"):
        write(tmp_path / name / "1.png", smooth(32, 32) // (1 + (name == "B")))
    for scale, degradation in ((1, camera_motion), (1, None), (2, None)):
        with pytest.raises(ValueError, match=r"A and .*B: which of them .* --lq and --gt"):
            open_pairs(tmp_path, scale, degradation=degradation)


class TestUnreadableImages:
    @pytest.mark.parametrize("memory", [1, 0])
    def test_they_stop_or_are_left_out(self, memory, tmp_path, capsys):
        write(tmp_path / "HR" / "a.png", noise(64, 64))
        write(tmp_path / "HR" / "b.png", noise(64, 64))
        write(tmp_path / "LR" / "a.png", noise(64, 64)[::2, ::2])
        lr = write(tmp_path / "LR" / "b.png", noise(64, 64)[::2, ::2])
        held_out = {"memory": memory, "scored": protocol("sr", 2)}
        for damage in (truncate, lambda path: path.write_text("no image")):
            damage(lr)
            if memory:
                with pytest.raises(BadImageError, match=r"b\.png: .*--skip-bad"):
                    open_pairs(tmp_path, 2, memory=memory)
            pairs = open_pairs(tmp_path, 2, skip_bad=True, **held_out)
            assert (names(pairs), list(pairs.left_out)) == (["a"], ["b"])
            assert pairs.in_memory == bool(memory)
            assert f"warning: left out {lr}" in capsys.readouterr().err
        truncate(tmp_path / "LR" / "a.png")
        with pytest.raises(ValueError, match="every image is unreadable"):
            open_pairs(tmp_path, 2, skip_bad=True, **held_out)


def test_sets_too_large_for_memory_give_the_same_crops(tmp_path):
    """Memory is counted in bytes of pixels."""
    for seed, name in enumerate("abc"):
        hr = smooth(36, 44 + 4 * seed, seed)[:33]
        write(tmp_path / "HR" / f"{name}.png", hr)
        write(tmp_path / "LR_bicubic" / "X2" / f"{name}.png", matlab_bicubic(hr[:32], 1 / 2))
    pixels = 16 * (22 + 24 + 26)
    need = 3 * (pixels + 4 * pixels) / 1e9
    loaded, files = (open_pairs(tmp_path, 2, memory=need * share) for share in (1.001, 0.999))
    assert (loaded.in_memory, files.in_memory, len(files)) == (True, False, 3)
    settings = {"crop": 8, "scale": 2, "length": 20, "seed": 0}
    one, other = (RandomCrops(pairs, **settings) for pairs in (loaded, files))
    for a, b in zip(one, other, strict=True):
        assert all(map(np.array_equal, a, b))


@pytest.mark.skipif("DCKD_DATA" not in os.environ, reason="DCKD_DATA (real images) is not set")
def test_real_frames_of_different_sequences_are_no_versions(tmp_path, monkeypatch):
    source = Path(os.environ["DCKD_DATA"], "deblur/REDS_mini/train/sharp")
    frames = sorted(source.iterdir())
    for path in frames:
        folder = tmp_path / path.name[:3]
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder / path.name[4:])
    assert len(found(tmp_path, 2)) == len(frames)
