"""What a training command does about data: two folders given outright, images that go bad."""

import json

import pytest

pytest.importorskip("matplotlib")

import train_sr
from PIL import Image as Pillow
from restoration.data.images import read_image
from toys import main, no_pictures, options, write  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pictures")]


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """A short run without distillation; its status and what it prints."""

    def run(*args):
        short = options(iterations=3, batch_size=1, crop=8, method="scratch", output=tmp_path / "o")
        status = main(monkeypatch, train_sr, *short, *args)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_two_folders_given_outright(tmp_path, train):
    for seed, kind in enumerate(("gt", "val")):
        hr = read_image(write(tmp_path / kind / "1.png", 12, 12, seed))
        (tmp_path / f"{kind}-lq").mkdir()
        Pillow.fromarray(hr[::2, 1::2]).save(tmp_path / f"{kind}-lq" / "1_x2.png")
    gt, lq, val, val_lq = (tmp_path / name for name in ("gt", "gt-lq", "val", "val-lq"))
    both = ["--lq", lq, "--gt", gt, "--val-lq", val_lq, "--val-gt", val]
    status, out, _ = train(*both)
    assert status == 0
    assert f"1 images of {lq} and {gt}, scale 2\n" in out
    assert "no pairs" not in out
    status, out, _ = train("--gt", gt, "--val-gt", val)
    assert status == 0
    for folder in (gt, val):
        assert f"no pairs for x2 in {folder}: its images are shrunk by MATLAB's bicubic" in out
    with pytest.raises(SystemExit, match="2"):
        train("--lq", lq)
    with pytest.raises(SystemExit, match="2"):
        train("--val", val, "--val-gt", val)
    status, _, err = train("--lq", lq, "--gt", val_lq)
    assert status == 2
    assert "expected 12x12 for scale 2" in err


def test_images_that_go_bad_do_not_cost_the_run(tmp_path, train):
    for seed in range(3):
        write(tmp_path / "data" / f"{seed}.png", 10, 12, seed)
    bad = write(tmp_path / "data" / "bad.png", 60, 60, 3)  # most crops are drawn from it
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    write(tmp_path / "val" / "a.png", 10, 10, 4)
    line = ["--data", tmp_path / "data", "--val", tmp_path / "val", "--memory", 0, "--workers", 0]
    status, _, err = train(*line)
    assert status == 2
    assert "bad.png: cannot be read as an image" in err
    assert "--skip-bad" in err
    status, out, err = train(*line, "--skip-bad")
    assert status == 0
    assert f"warning: left out {bad}" in err
    assert "left out, as they cannot be read: bad" in out
    metrics = tmp_path / "o" / "metrics.json"
    assert json.loads(metrics.read_text(encoding="utf-8"))["left_out"] == ["bad"]
    bad.write_bytes(whole)
    status, out, _ = train(*line, "--resume")
    assert status == 0
    assert "data since the checkpoint: 1 used, though changed: bad\n" in out
    bad.unlink()
    status, out, _ = train(*line, "--resume")
    assert status == 0
    assert "data since the checkpoint: 1 left out, as they are gone: bad\n" in out
