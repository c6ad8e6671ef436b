"""Folders of images without pairs: low-quality images do not pass for ground truths."""

import numpy as np
import pytest
from PIL import Image as Pillow
from restoration.data.datasets import load_pairs
from restoration.data.synthetic import camera_motion, matlab_bicubic


def image(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return matlab_bicubic(small, 4)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        *("LR", "lr_x4", "LRbicx3", "LRBI", "DIV2K_train_LR_unknown", "Flickr2K_LR_bicubic"),
        *("X2", "x4_sub", "bicubic", "Bicubic_4"),
    ],
)
def test_folders_named_as_lr_images_are(name, tmp_path):
    write(tmp_path / "originals" / "a.png", image(16, 16))
    write(tmp_path / "Set5" / name / "b.png", image(16, 16, 1))
    message = rf"{name}: named as LR images are; expected the folder that holds HR and LR"
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path, 2)
    assert len(load_pairs(tmp_path / "originals", 2)) == 1
    assert len(load_pairs(tmp_path / "Set5" / name, 2)) == 1  # asked for


@pytest.mark.parametrize("name", ["train", "Urban100", "LRS3", "x-ray", "clear"])
def test_other_names_are_just_names(name, tmp_path):
    write(tmp_path / name / "a.png", image(16, 16))
    write(tmp_path / "other" / "b.png", image(16, 16, 1))
    assert [pair.name for pair in load_pairs(tmp_path, 2)] == sorted([f"{name}/a", "other/b"])


@pytest.mark.parametrize(("scale", "suffix"), [(2, ""), (3, "x3"), (4, "x4")])
def test_images_made_smaller(scale, suffix, tmp_path):
    """Whatever the folders are called, and although the larger one's sides are no multiples."""
    for seed, name in enumerate(("img1", "img10")):
        large = image(48, 64, seed)[:47, :62]
        write(tmp_path / "high" / f"{name}.png", large)
        whole = large[: 47 // scale * scale, : 62 // scale * scale]
        write(tmp_path / "low" / f"{name}{suffix}.png", matlab_bicubic(whole, 1 / scale))
    with pytest.raises(ValueError, match=r"img1.*\.png: found to be .*img1\.png made smaller"):
        load_pairs(tmp_path, 2)
    assert len(load_pairs(tmp_path / "high", 2)) == 2


def test_sequences_may_have_the_same_names_and_any_sizes(tmp_path):
    write(tmp_path / "000" / "00000001.png", image(32, 48, 1))
    write(tmp_path / "001" / "00000001.png", image(16, 24, 2))
    write(tmp_path / "002" / "00000001.png", np.zeros((8, 12, 3), np.uint8))
    write(tmp_path / "003" / "00000001.png", image(32, 48, 3))
    assert len(load_pairs(tmp_path, 2)) == 4


def test_a_file_that_is_no_image_is_left_to_the_reader(tmp_path):
    write(tmp_path / "a" / "1.png", image(32, 32))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.png").write_text("no image")
    assert [pair.name for pair in load_pairs(tmp_path, 2, skip_bad=True)] == ["a/1"]


@pytest.mark.parametrize(("lq", "hq"), [("LQ", "GT"), ("data", "gt"), ("blurry", "sharp")])
def test_ground_truths_beside_something_else(lq, hq, tmp_path):
    """Of a deraining set, say, whose rainy images would be rained on once more."""
    write(tmp_path / lq / "1.png", image(16, 16))
    write(tmp_path / hq / "1.png", image(16, 16, 1))
    message = rf"{hq}: found beside {lq}; expected pairs in folders by names in README"
    for scale, degradation in ((1, camera_motion), (2, None)):
        with pytest.raises(ValueError, match=message):
            load_pairs(tmp_path, scale, degradation=degradation)
        assert len(load_pairs(tmp_path / hq, scale, degradation=degradation)) == 1


def test_images_beside_their_ground_truths(tmp_path):
    write(tmp_path / "1.png", image(16, 16))
    write(tmp_path / "gt" / "1.png", image(16, 16, 1))
    with pytest.raises(ValueError, match=r"gt: found beside 1\.png"):
        load_pairs(tmp_path, 1, degradation=camera_motion)


def test_ground_truths_alone_may_lie_deep(tmp_path):
    """GoPro's, for instance, of which somebody has kept the sharp ones."""
    for sequence in ("GOPR1", "GOPR2"):
        write(tmp_path / sequence / "sharp" / "1.png", image(16, 16))
    assert len(load_pairs(tmp_path, 1, degradation=camera_motion)) == 2
