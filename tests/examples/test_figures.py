"""Pictures: written, of the right crops, and robust to short runs and small images."""

import pytest

pytest.importorskip("matplotlib")

from itertools import pairwise

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image as Pillow
from restoration.data.datasets import Pair
from restoration.results import figures
from restoration.results.metrics import protocol, psnr

RECORDS = [
    {"step": 20.0, "l1": 0.5, "kd": 0.2},
    {"step": 40.0, "l1": 0.04, "kd": 0.19, "psnr": 30.0},
    {"step": 60.0, "l1": 0.03, "kd": 0.18, "psnr": 31.0},
]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    saved = []
    savefig = Figure.savefig

    def keep(self, *args, **kwargs):
        saved.append(self)
        savefig(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def test_curves_draws_every_loss_and_the_psnr(drawn, tmp_path):
    figures.curves(RECORDS, {"bicubic": 29.0, "teacher": 33.0}, tmp_path / "curves.png")
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == ["l1 loss", "kd loss", "validation PSNR (dB)"]
    np.testing.assert_array_equal(
        axes[0].lines[0].get_xydata(), [(20, 0.5), (40, 0.04), (60, 0.03)]
    )
    student, bicubic, teacher = axes[2].lines
    np.testing.assert_array_equal(student.get_xydata(), [(40, 30), (60, 31)])
    assert [line.get_label() for line in (bicubic, teacher)] == ["bicubic", "teacher"]
    assert list(bicubic.get_ydata()) == [29.0, 29.0]
    assert [axis.get_yscale() for axis in axes] == ["log", "linear", "linear"]
    assert Pillow.open(tmp_path / "curves.png").size[0] > 900


def test_curves_are_pale_as_they_are_and_smooth_over_them(drawn, tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(5, 1, 100)
    records = [{"step": n, "ratio": x, "positive": [x, x]} for n, x in enumerate(noise)]
    figures.curves(records, {}, tmp_path / "curves.png")
    axis, _ = drawn[0].axes  # lists are left out
    assert axis.get_title() == "gradient ratio"
    raw, smooth = axis.lines
    np.testing.assert_array_equal(raw.get_ydata(), noise)
    assert raw.get_alpha() < 1
    assert smooth.get_ydata()[50] == pytest.approx(noise[45:56].mean())
    assert smooth.get_ydata()[0] == pytest.approx(noise[:6].mean())


def test_curves_of_one_step_without_validation(tmp_path):
    figures.curves([{"step": 1.0, "l1": 0.0}], {}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_side_by_side_shows_the_same_crop_of_each_version(drawn, tmp_path):
    truth = np.zeros((200, 300, 3), np.uint8)
    lq = truth.copy()
    lq[110:180, 170:250] = 200  # the only difference lies within the crop at (96, 160)
    pairs = [Pair(name, lq, truth) for name in ("cat", "x" * 40)]
    versions = {title: {"cat": lq, "x" * 40: lq + 1} for title in ("bicubic", "student")}
    figures.side_by_side(pairs, versions, protocol("deblur"), tmp_path / "side.png")
    axes = drawn[0].axes
    decibels = [psnr(image, truth, protocol("deblur")) for image in (lq, lq + 1)]
    assert [axis.get_title() for axis in axes] == [
        title
        for each in decibels
        for title in (f"bicubic, {each:.2f} dB", f"student, {each:.2f} dB", "ground truth")
    ]
    assert axes[0].get_ylabel() == "cat"
    assert len(axes[3].get_ylabel()) == 24
    top, left = figures.telling_crop(lq, truth)
    for axis, image in zip(axes, (lq, lq, truth, lq + 1, lq + 1, truth), strict=True):
        crop = image[top : top + figures.SIZE, left : left + figures.SIZE]
        np.testing.assert_array_equal(axis.images[0].get_array(), crop)
    assert top <= 110 and top + figures.SIZE >= 180
    assert left <= 170 and left + figures.SIZE >= 250


def test_telling_crop_reaches_the_last_row_and_fits_small_images():
    truth = np.zeros((figures.SIZE + figures.STEP, figures.SIZE, 3), np.uint8)
    lq = truth.copy()
    lq[-1] = 255
    assert figures.telling_crop(lq, truth) == (figures.STEP, 0)
    assert figures.telling_crop(lq[:20, :20], truth[:20, :20]) == (0, 0)


def test_no_title_is_cut(drawn, tmp_path):
    image = np.zeros((40, 50, 3), np.uint8)
    versions = {title: {"a": image + 7} for title in ("bicubic", "student", "teacher")}
    pairs, path = [Pair("a", image, image)], tmp_path / "a.png"
    figures.side_by_side(pairs, versions, protocol("deblur"), path)
    figures.curves(RECORDS, {"bicubic": 29.0}, tmp_path / "b.png")
    for figure in drawn:
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [axis.title.get_window_extent(renderer) for axis in figure.axes]
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
