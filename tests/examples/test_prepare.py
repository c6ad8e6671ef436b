"""Sub-images: where they lie, that a stopped preparation is gone on with, and what is refused."""

import subprocess
from pathlib import Path

import numpy as np
import prepare as prepare_command
import pytest
from PIL import Image as Pillow
from prepare import plan, starts, write_crops
from restoration.data.datasets import open_pairs
from restoration.data.images import read_image
from restoration.data.layouts import UNFINISHED, find_pairs
from restoration.data.synthetic import matlab_bicubic
from toys import main, noise


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(image).save(path, compress_level=0)
    return path


@pytest.fixture
def prepare(monkeypatch, capsys):
    """The command within this process, with a worker."""

    def run(*args):
        more = [] if "--workers" in args else ["--workers", 1]
        status = main(monkeypatch, prepare_command, *args, *more)
        return subprocess.CompletedProcess(args, status, *capsys.readouterr())

    return run


def test_parts_begin_at_every_step_and_the_last_ends_with_the_image():
    assert starts(1280, 512, 256) == [0, 256, 512, 768]  # GoPro: 4 x 2, NAFNet's 16,824 in all
    assert starts(720, 512, 256) == [0, 208]
    assert starts(2040, 480, 240) == [0, 240, 480, 720, 960, 1200, 1440, 1560]
    assert starts(480, 480, 240) == [0]
    assert starts(479, 480, 240) == []


def test_div2k(tmp_path, prepare):
    """LR of its own for x2, made for x3; the height is no multiple of 12."""
    hr = noise(492 + 7, 720)
    lr = hr[:498:2, ::2]
    write(tmp_path / "DIV2K_train_HR" / "0001.png", hr)
    write(tmp_path / "DIV2K_train_LR_bicubic" / "X2" / "0001x2.png", lr)
    done = prepare(tmp_path, "--scales", 2, 3, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "12 sub-images written" in done.stdout
    assert "3/3" in done.stderr  # the progress bar
    corners = [(0, 0), (0, 240), (12, 0), (12, 240)]
    pairs = open_pairs(tmp_path, 2)
    assert [pair.name for pair in pairs] == [f"0001_s00{n}" for n in (1, 2, 3, 4)]
    for (y, x), pair in zip(corners, pairs, strict=True):
        np.testing.assert_array_equal(pair.hq, hr[y : y + 480, x : x + 480])
        np.testing.assert_array_equal(pair.lq, lr[y // 2 : y // 2 + 240, x // 2 : x // 2 + 240])
    made = matlab_bicubic(hr[: 499 // 3 * 3], 1 / 3)
    for (y, x), pair in zip(corners, open_pairs(tmp_path, 3), strict=True):
        np.testing.assert_array_equal(pair.lq, made[y // 3 : y // 3 + 160, x // 3 : x // 3 + 160])


def test_gopro_stopped_and_gone_on_with(tmp_path, prepare):
    for index, sequence in enumerate(("GOPR1", "GOPR2")):
        for kind in ("blur", "sharp"):
            write(tmp_path / sequence / kind / "7.png", noise(520, 512, index) // len(kind))
    first, *_ = plan(tmp_path, [])
    assert write_crops(first) == 2
    (first.folder / "GOPR1-7_s002.png").unlink()
    kept = (first.folder / "GOPR1-7_s001.png").stat().st_mtime_ns
    (tmp_path / UNFINISHED).touch()
    with pytest.raises(ValueError, match="unfinished"):
        open_pairs(tmp_path, 1)
    done = prepare(tmp_path, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "7 sub-images written" in done.stdout
    assert (first.folder / "GOPR1-7_s001.png").stat().st_mtime_ns == kept
    pairs = open_pairs(tmp_path, 1)
    assert [pair.name for pair in pairs] == [
        *("GOPR1-7_s001", "GOPR1-7_s002", "GOPR2-7_s001", "GOPR2-7_s002")
    ]
    np.testing.assert_array_equal(pairs[3].lq, noise(520, 512, 1)[8:] // len("blur"))
    np.testing.assert_array_equal(pairs[3].hq, noise(520, 512, 1)[8:] // len("sharp"))
    assert "0 sub-images written" in prepare(tmp_path).stdout


@pytest.mark.parametrize(
    ("lq", "gt", "parts"),
    [
        ("train_blur/000", "train_sharp/000", ("train_blur_crops", "train_sharp_crops")),
        ("data", "gt", ("lq_crops", "gt_crops")),
    ],
)
def test_folders_of_other_names(lq, gt, parts, tmp_path, prepare):
    for folder in (lq, gt):
        write(tmp_path / folder / "1.png", noise(512, 512) // len(folder))
    assert "2 sub-images written" in prepare(tmp_path).stdout
    ((_, found_gt, found_lq),) = find_pairs(tmp_path, 1)
    assert (found_lq.parent.name, found_gt.parent.name) == parts


def test_a_file_appears_complete_or_not_at_all(tmp_path, monkeypatch):
    for kind in ("blur", "sharp"):
        write(tmp_path / kind / "1.png", noise(512, 512))

    write_bytes = Path.write_bytes

    def half(path, data):
        write_bytes(path, data[: len(data) // 2])
        raise SystemExit

    cut = plan(tmp_path, [])[0]
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(SystemExit):
        write_crops(cut)
    assert list(cut.folder.iterdir()) == []
    monkeypatch.undo()
    write_crops(cut)
    np.testing.assert_array_equal(read_image(cut.folder / "1_s001.png"), noise(512, 512))


def test_refusals(tmp_path, prepare):
    for arguments, parts in (
        ([tmp_path / "absent"], "found nothing; expected a folder"),
        ([tmp_path, "--workers", 0], "--workers must be at least 1 and at most 256, got 0"),
    ):
        done = prepare(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert parts in done.stderr
    for kind in ("input", "target"):
        write(tmp_path / kind / "1.png", noise(500, 600))
    done = prepare(tmp_path)
    assert done.returncode == 2
    assert "got 600x500; expected 512x512 or more" in done.stderr


def test_what_cannot_be_cut_leaves_no_mark(tmp_path, prepare):
    """Training would ask for another preparation for ever, which fails the same way."""
    for kind in ("lq", "gt"):
        write(tmp_path / kind / "1.png", noise(512, 512))
        write(tmp_path / kind / "2.png", noise(256, 256))
    assert "got 256x256; expected 512x512 or more" in prepare(tmp_path).stderr
    (tmp_path / "lq" / "2.png").write_bytes(b"no image")
    assert "2.png: cannot be read as an image" in prepare(tmp_path).stderr
    write(tmp_path / "lq" / "2.png", noise(512, 512))
    write(tmp_path / "gt" / "2.png", noise(512, 600))
    stderr = prepare(tmp_path).stderr
    assert "gt/2.png: got 600x512; expected 512x512, as" in stderr.replace("\\", "/")
    assert not (tmp_path / UNFINISHED).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"lq", "gt"}
    write(tmp_path / "gt" / "2.png", noise(512, 512))
    assert "4 sub-images written" in prepare(tmp_path).stdout
    assert {path.name for path in tmp_path.iterdir()} == {"lq", "gt", "lq_crops", "gt_crops"}
    assert [pair.name for pair in open_pairs(tmp_path, 1)] == ["1_s001", "2_s001"]


def test_lr_of_another_scale_is_not_cut(tmp_path, prepare):
    write(tmp_path / "DIV2K_train_HR" / "0001.png", noise(499, 720))
    lr = write(tmp_path / "DIV2K_train_LR_bicubic" / "X3" / "0001x3.png", noise(249, 360))
    stderr = prepare(tmp_path, "--scales", 2, 3).stderr
    assert f"{lr}: got 360x249; expected 240x166, as" in stderr
    assert not (tmp_path / UNFINISHED).exists()
