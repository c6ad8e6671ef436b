"""Evaluation in Python and on the command line."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate as evaluate_command
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from restoration.data.datasets import open_pairs, pairs_from_images
from restoration.data.synthetic import matlab_bicubic
from restoration.networks import build, save
from restoration.networks.own import build_own
from restoration.results.evaluation import evaluate, restore
from restoration.results.metrics import protocol, psnr, ssim
from torch import nn
from toys import write, write_pairs


def smooth(seed):
    """What `write` writes."""
    small = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    return matlab_bicubic(small, 4)


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(("a.png", "b.png")):
        write(tmp_path / "set" / name, 10, 12, seed)
    return tmp_path / "set"


@pytest.fixture
def command(monkeypatch, capsys):
    """The command within this process."""

    def run(*args, task="sr"):
        line = ["evaluate.py", "--task", task, *map(str, args)]
        monkeypatch.setattr(sys, "argv", line)
        status = evaluate_command.main()
        return subprocess.CompletedProcess(line, status, *capsys.readouterr())

    run.said = lambda: capsys.readouterr().err
    return run


CODE = """
from torch import nn

def net(scale, width):
    up = nn.PixelShuffle(scale)
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, 3 * scale**2, 1), up)
"""


class Nearest(nn.Module):
    """Doubles by repetition; keeps what it was run with."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.frozen = nn.Dropout(0.5).eval()
        self.drop = nn.Dropout(0.5)

    def forward(self, lq):
        self.seen = lq
        out = self.drop(self.frozen(lq)) * self.weight
        return out.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_restore_is_the_network_in_eval_mode_without_gradient():
    model = Nearest()
    lq = smooth(0)
    np.testing.assert_array_equal(restore(model, lq), lq.repeat(2, axis=0).repeat(2, axis=1))
    assert model.seen.dtype == torch.float64
    assert model.seen.shape == (1, 3, 40, 48)
    assert model.training  # each mode is put back
    assert model.drop.training
    assert not model.frozen.training


def test_evaluate_is_the_metrics_of_each_image_and_their_mean():
    pairs = pairs_from_images({"a": smooth(0), "b": smooth(1)}, 2)
    scores = evaluate(Nearest(), pairs, 2)
    assert list(scores["images"]) == ["a", "b"]
    for (name, lq, hq), score in zip(pairs, scores["images"].values(), strict=True):
        output = lq.repeat(2, axis=0).repeat(2, axis=1)
        assert score["psnr"] == psnr(output, hq, protocol("sr", 2)), name
        assert score["ssim"] == ssim(output, hq, protocol("sr", 2)), name
    for key in ("psnr", "ssim"):
        mean = np.mean([score[key] for score in scores["images"].values()])
        assert scores[key] == pytest.approx(mean, rel=1e-12)


def test_evaluate_refuses_what_it_cannot_score():
    with pytest.raises(ValueError, match="no pairs"):
        evaluate(None, [], 2)
    pairs = pairs_from_images({"a": smooth(0)}, 4)
    with pytest.raises(ValueError, match=r"output \(20, 24, 3\); expected .*\(40, 48, 3\)"):
        evaluate(Nearest(), pairs, 4)


@pytest.mark.parametrize(
    ("task", "folders", "where"),
    [
        ("sr", None, "on Y, without a border of 2 pixels"),
        ("derain", ("input", "target"), "on Y in whole numbers, border included"),
        ("deblur", ("blur", "sharp"), "in RGB, border included, SSIM over the volume"),
        ("deblur", ("input", "target"), "in RGB, border included, SSIM over the volume"),
    ],
)
def test_command_prints_and_writes_the_scores(folder, task, folders, where, tmp_path, command):
    report, images, scale = tmp_path / "out" / "scores.json", tmp_path / "images", 1
    line = ["--model", "input", "--json", report, "--save-images", images]
    if task == "sr":
        scale, line = 2, [*line, "--scale", 2]
    else:
        folder = write_pairs(tmp_path / "pairs", *folders)
    done = command(*line, "--data", folder, task=task)
    assert done.returncode == 0, done.stderr
    name, pairs = ("input", "bicubic")[scale > 1], open_pairs(folder, scale)
    scores, rules = evaluate(None, pairs, scale, task=task), protocol(task, scale)
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written == {"task": task, "scale": scale, "model": name, **scores}
    assert rows(done) == {name: [numbers(scores)]}
    assert f"PSNR (dB) / SSIM {where}\n" in done.stdout
    made = f"no pairs for x2 in {folder}: its images are shrunk by MATLAB"
    assert done.stdout.startswith(made) == (task == "sr")
    for pair in pairs:
        expected = matlab_bicubic(pair.lq, 2) if task == "sr" else pair.lq
        saved = np.asarray(Pillow.open(images / f"{pair.name}.png"))
        np.testing.assert_array_equal(saved, expected)
        assert scores["images"][pair.name]["psnr"] == psnr(expected, pair.hq, rules)


SR, DEBLUR = "--scale 2 --data set --model bicubic", "--task deblur --data pairs --model input"
REFUSED = [  # below `set` lie images a and b, and below `pairs` the same blurred and sharp
    ("--scale 2 --data absent --model bicubic", "absent: found nothing; expected a folder"),
    ("--scale 2 --data set --model no.safetensors", "no.safetensors: no such file"),
    ("--scale 2 --data bad --model bicubic", "bad/half.png: cannot be read as an image"),
    ("--scale 2 --data bad --model bicubic", "--skip-bad"),
    ("--scale 3 --data few --model bicubic", "a.png: 17x17 pixels; scoring needs 18x18 or more"),
    ("--data pairs --model input", "got no --scale for --task sr; give --scale 2 or more"),
    ("--scale 1 --data set --model input", "--scale must be at least 2 and at most 8, got 1"),
    ("--scale 2 --data set --model x1.safetensors", "a network for x1; expected one for x2"),
    (f"{SR} input", "got the model input twice; expected each model once"),
    (f"{DEBLUR} x1.safetensors ./x1.safetensors", "x1.safetensors twice; expected each model once"),
    (f"{SR} --data set", "got the set set twice; expected each set once"),
    (f"{SR} --backbone rcan-teacher", "--backbone rcan-teacher for --model bicubic; expected none"),
    (f"{DEBLUR} bicubic", "got --model bicubic for --task deblur; expected input"),
    (f"{DEBLUR} --scale 2", "got --scale 2 for --task deblur; expected none"),
    ("--task derain --data set --model input", "found no pairs; expected two versions of each"),
    (f"{DEBLUR} x1.safetensors --tile 9", "got tile 9; expected a multiple of 8"),
    *(
        (f"{DEBLUR} {option} file{below}", f"{option}: file is a file; expected a folder")
        for option, below in (
            *(("--json", "/x.json"), ("--json", "/y/x.json"), ("--picture", "/a.png")),
            *(("--save-images", ""), ("--save-images", "/x")),
        )
    ),
    (f"{DEBLUR} --json set", "--json: set is a folder; expected a file or nothing"),
    (f"{DEBLUR} --picture set", "--picture: set is a folder; expected a file or nothing"),
    (f"{DEBLUR} --picture a.gif", "--picture a.gif; expected a file *.png"),
    (f"{DEBLUR} --json a.pth", "--json a.pth; expected a file *.json"),
    (f"{SR} --picture set/a.png", "set/a.png is an image of a set; expected another place"),
    (f"{SR} --save-images set", "set/a.png is an image of a set; expected another place"),
]


@pytest.mark.parametrize(("line", "said"), REFUSED)
def test_what_is_wrong_is_a_line_before_any_work(
    folder, line, said, tmp_path, command, monkeypatch
):
    write_pairs(tmp_path / "pairs", "blur", "sharp")
    for name, side in (("few", 17), ("bad", 40)):
        (tmp_path / name).mkdir()
        Pillow.fromarray(smooth(0)[:side, :side]).save(tmp_path / name / "a.png")
    whole = (folder / "a.png").read_bytes()
    (tmp_path / "bad" / "half.png").write_bytes(whole[:300])
    (tmp_path / "file").write_bytes(whole)
    save(build("tiny", 1), tmp_path / "x1.safetensors")
    monkeypatch.chdir(tmp_path)
    if "--tile" not in line:
        monkeypatch.setattr(evaluate_command, "evaluate", None)  # a call would fail
    done = command(*line.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (folder / "a.png").read_bytes() == whole


def test_bad_images_may_be_skipped_and_17_pixels_are_enough_at_scale_2(tmp_path, command):
    good = write(tmp_path / "set" / "a.png", 10, 12, 0)
    good.with_name("half.png").write_bytes(good.read_bytes()[:300])
    Pillow.fromarray(smooth(0)[:17, :17]).save(tmp_path / "set" / "small.png")
    line = ("--scale", 2, "--model", "bicubic", "--data", good.parent, "--skip-bad")
    done = command(*line, "--json", tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    assert "half.png" in done.stderr and "half" not in done.stdout
    written = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert (written["left_out"], list(written["images"])) == (["half"], ["a", "small"])


def test_command_scores_lr_that_is_given_and_says_where_it_makes_its_own(tmp_path, command):
    hr, lr = smooth(0), smooth(0)[1::2, 1::2]
    for folder, image in (("HR", hr), ("LR", lr)):
        (tmp_path / "set" / folder).mkdir(parents=True)
        Pillow.fromarray(image).save(tmp_path / "set" / folder / "a.png")
    line = ("--scale", 2, "--model", "bicubic")
    expected = psnr(matlab_bicubic(lr, 2), hr, protocol("sr", 2))
    for data in (
        ("--data", tmp_path / "set"),
        ("--lq", tmp_path / "set" / "LR", "--gt", tmp_path / "set" / "HR"),
        ("--gt", tmp_path / "set" / "HR", "--input", tmp_path / "set" / "LR"),
    ):
        done = command(*line, *data)
        assert rows(done)["bicubic"][0].startswith(f"{expected:.2f} ")
        assert "made" not in done.stdout
        assert "no pairs" not in done.stdout
    done = command(*line, "--gt", tmp_path / "set" / "HR")
    assert done.stdout.startswith("no pairs for x2 in ")
    assert not rows(done)["bicubic"][0].startswith(f"{expected:.2f} ")
    (tmp_path / "set" / "LR").rename(tmp_path / "set" / "LRx3")
    assert command(*line, "--data", tmp_path / "set").stdout.startswith("no pairs for x2 in ")
    more = ("--data", tmp_path / "set")
    for wrong, said in (
        ([*line], "got no ground truths; expected --data, or --input and --gt"),
        ([*line, "--input", tmp_path], "got no ground truths; expected --data, or --input and"),
        ([*line, *more, "--gt", tmp_path], "got --data beside --input or --gt; expected --data, "),
        ([*line, *more, "--input", tmp_path], "got --data beside --input or --gt; expected"),
        ([*line, "--gt", 1, 2, "--input", 1], "got --input of 1 sets and --gt of 2; expected both"),
        ([*line, "--data", ""], "--data: got an empty path"),
        (["--task", "derain", "--model", "input", "--gt", 1], "got --gt without --input; expected"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command(*wrong)
        assert said in command.said()


def rows(done):
    """The table's lines: model to scores."""
    *_, last = re.split(r"(model .*\n)", done.stdout)
    lines = (line.split() for line in last.splitlines())
    words = {line[0]: " ".join(line[1:]) for line in lines}
    return {model: re.findall(r"\S+ / \S+", said) for model, said in words.items()}


def numbers(score):
    return f"{score['psnr']:.2f} / {score['ssim']:.4f}"


@pytest.mark.skipif("DCKD_DATA" not in os.environ, reason="DCKD_DATA (real images) is not set")
@pytest.mark.parametrize(
    ("scale", "decibels", "similarity"),
    [(2, 33.66, 0.9299), (3, 30.39, 0.8682), (4, 28.42, 0.8104)],
)
def test_bicubic_on_set5_is_the_published_number(tmp_path, scale, decibels, similarity, command):
    set5 = Path(os.environ["DCKD_DATA"], "sr", "Set5")
    report = tmp_path / "scores.json"
    done = command("--scale", scale, "--model", "bicubic", "--data", set5, "--json", report)
    assert done.returncode == 0, done.stderr
    scores = json.loads(report.read_text(encoding="utf-8"))
    assert len(scores["images"]) == 5
    assert scores["psnr"] == pytest.approx(decibels, abs=0.02)
    assert scores["ssim"] == pytest.approx(similarity, abs=0.001)


def test_tiles_make_the_same_image_where_a_network_sees_no_further_than_their_overlap():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (83, 131, 3), dtype=np.uint8)
    for scale in (1, 2):
        torch.manual_seed(0)
        model = build("tiny", scale)
        nn.init.normal_(model.tail.weight, std=0.05)
        whole = restore(model, image)
        assert whole.shape == (83 * scale, 131 * scale, 3)
        for tile in (24, 64, 200):
            tiled = restore(model, image, tile)
            assert np.abs(tiled.astype(int) - whole).max() <= 1  # a rounding apart
            assert (tiled == whole).mean() > 0.999
    for tile in (0, 4, 20):
        with pytest.raises(ValueError, match=f"got tile {tile}; expected a multiple of 8"):
            restore(model, image, tile)


@pytest.mark.usefixtures("paper_networks")
@pytest.mark.parametrize(
    ("name", "scale"),
    [("swinir-light", 2), ("rcan-student", 2), ("nafnet-student", 1), ("restormer-student", 1)],
)
def test_the_papers_networks_restore_images_of_any_size(name, scale):
    torch.manual_seed(0)
    image = smooth(0)[:21, :27]
    model = build(name, scale)
    assert restore(model, image).shape == (21 * scale, 27 * scale, 3)
    assert restore(model, image, 16).shape == (21 * scale, 27 * scale, 3)


def test_command_restores_in_tiles(tmp_path, command):
    data, path = write_pairs(tmp_path / "set", "blur", "sharp"), tmp_path / "net.safetensors"
    save(build("tiny", 1), path)  # untrained: its input
    done = command("--model", path, "input", "--data", data, "--tile", 16, task="deblur")
    assert rows(done)["net"] == rows(done)["input"]


def test_command_scores_several_models_on_several_sets(folder, tmp_path, command, monkeypatch):
    """Of equal names, too, which folders tell apart; one picture and one table."""
    other = shutil.copytree(folder, tmp_path / "more" / "set")
    (other / "a.png").replace(other / "b.png")  # another image of this name
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build("tiny", 2)
        nn.init.normal_(model.tail.weight, std=0.05)
        save(model, tmp_path / str(seed) / "student.safetensors")
    drawn = []
    monkeypatch.setattr("restoration.results.figures.side_by_side", lambda *a: drawn.append(a))
    files = [tmp_path / str(seed) / "student.safetensors" for seed in (0, 1)]
    line = ("--scale", 2, "--model", *files, "--model", "input", "--data", folder, other)
    out = ("--json", tmp_path / "s.json", "--save-images", tmp_path / "images")
    done = command(*line, *out, "--picture", tmp_path / "deep" / "p.png")
    assert done.returncode == 0, done.stderr
    table = rows(done)
    sets = [f"{tmp_path.name}/set", "more/set"]
    assert list(table) == ["0/student", "1/student", "bicubic"]
    assert done.stdout.count("9,492") == 2
    assert done.stdout.splitlines()[-4].split() == ["model", "parameters", *sets]
    written = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["models"]
    assert {k: [numbers(s) for s in v["sets"].values()] for k, v in written.items()} == table
    assert [each["model"] for each in written.values()] == [*map(str, files), "bicubic"]
    ((pairs, versions, rules, path),) = drawn
    assert ([pair.name for pair in pairs], rules) == (["a", "b"], protocol("sr", 2))
    assert path == tmp_path / "deep" / "p.png"
    assert list(versions) == ["bicubic", "0/student", "1/student"]
    for name, model in itertools.product("ab", versions):
        saved = Pillow.open(tmp_path / "images" / model / sets[0] / f"{name}.png")
        np.testing.assert_array_equal(versions[model][name], np.asarray(saved))


def test_sets_of_the_same_truths_are_named_by_their_input(tmp_path, command):
    for kind in ("mild", "strong"):
        write_pairs(tmp_path / kind, "noisy", "clean")
    folders = [tmp_path / kind / "noisy" for kind in ("mild", "strong")]
    truths = [tmp_path / "mild" / "clean"] * 2
    done = command("--model", "input", "--input", *folders, "--gt", *truths, task="derain")
    assert done.stdout.splitlines()[1].split()[2:] == ["mild/noisy", "strong/noisy"]


def test_backbones_belong_to_the_model_before_them(folder, tmp_path, command):
    files = []
    for width in (4, 6):
        code = tmp_path / f"net{width}.py"
        code.write_text(CODE)
        model = build_own(f"{code}:net", 2, {"width": width})
        files.append((tmp_path / f"w{width}.pth", f"{code}:net", f"width={width}"))
        torch.save(model.state_dict(), files[-1][0])
    line = ["--scale", 2, "--data", folder]
    each = [("--model", path, "--backbone", *own) for path, *own in files]
    assert set(rows(command(*line, *sum(each, ())))) == {"w4", "w6"}
    path, *own = files[0]
    all_of = ("--backbone", *own, "--model", path, "input")
    assert set(rows(command(*line, *all_of))) == {"w4", "bicubic"}
    one_by_one = ("--backbone", *own, "--model", "input", "--model", path)
    assert set(rows(command(*line, *one_by_one))) == {"w4", "bicubic"}
    assert "w6.pth holds another network, of " in command(*line, *all_of, files[1][0]).stderr
    broken = tmp_path / "nan.pth"
    torch.save({k: v + torch.nan for k, v in torch.load(path).items()}, broken)
    done = command(*line, "--model", "input", "--model", broken, "--backbone", *own)
    assert "error: nan on set: got NaN in the image; expected" in done.stderr
