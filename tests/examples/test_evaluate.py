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


def test_command_prints_and_writes_the_scores(folder, tmp_path, command):
    report, images = tmp_path / "out" / "scores.json", tmp_path / "images"
    done = command(
        *("--scale", 2, "--model", "bicubic", "--data", folder),
        *("--json", report, "--save-images", images),
    )
    assert done.returncode == 0, done.stderr
    scores = evaluate(None, open_pairs(folder, 2), 2)
    written = json.loads(report.read_text(encoding="utf-8"))
    assert written == {"task": "sr", "scale": 2, "model": "bicubic", **scores}
    assert rows(done) == {"bicubic": [numbers(scores)]}
    assert "SSIM on Y, without a border of 2 pixels\n" in done.stdout
    assert done.stdout.startswith(f"no pairs for x2 in {folder}: its images are shrunk by MATLAB")
    for pair in open_pairs(folder, 2):
        saved = np.asarray(Pillow.open(images / f"{pair.name}.png"))
        np.testing.assert_array_equal(saved, matlab_bicubic(pair.lq, 2))


def test_command_reports_bad_input_without_a_traceback(folder, tmp_path, command):
    bicubic = ("--scale", 2, "--model", "bicubic", "--data")
    refused(command(*bicubic, tmp_path / "absent"), "absent: found nothing; expected a folder")
    refused(
        command("--scale", 2, "--model", tmp_path / "no.safetensors", "--data", folder),
        "no.safetensors: no such file",
    )
    half = folder / "half.png"
    half.write_bytes((folder / "a.png").read_bytes()[:300])
    refused(command(*bicubic, folder), "half.png", "--skip-bad")
    skipped = command(*bicubic, folder, "--skip-bad")
    assert skipped.returncode == 0
    assert "half.png" in skipped.stderr
    assert "half" not in skipped.stdout


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
    ):
        with pytest.raises(SystemExit, match="2"):
            command(*wrong)
        assert said in command.said()


def test_command_names_images_that_are_too_small(tmp_path, command):
    path = tmp_path / "few" / "a.png"
    path.parent.mkdir()
    Pillow.fromarray(smooth(0)[:17, :17]).save(path)
    line = ("--model", "bicubic", "--data", path.parent, "--scale")
    refused(command(*line, 3), f"{path}: 17x17 pixels; scoring needs 18x18 or more")
    assert command(*line, 2).returncode == 0


def test_command_says_where_it_cannot_write(folder, tmp_path, command, monkeypatch):
    def no_work(*args, **kwargs):
        raise AssertionError("it began to evaluate")

    monkeypatch.setattr(evaluate_command, "evaluate", no_work)
    line = ("--scale", 2, "--model", "bicubic", "--data", folder)
    file = folder / "a.png"
    for option, path in (
        *(("--json", file / "x.json"), ("--json", file / "y" / "x.json")),
        *(("--save-images", file), ("--save-images", file / "x"), ("--picture", file / "a.png")),
    ):
        refused(command(*line, option, path), f"{option}: {file} is a file; expected a folder")
    for option in ("--json", "--picture"):
        refused(command(*line, option, folder), f"{option}: {folder} is a folder; expected a file")
    refused(command(*line, "--picture", "a.gif"), "--picture a.gif; expected a file *.png")
    refused(command(*line, "--json", "a.pth"), "--json a.pth; expected a file *.json")
    refused(command(*line, "--picture", file), f"{file} is an image of a set; expected another")


def test_results_are_not_written_over_the_images(folder, command):
    before = (folder / "a.png").read_bytes()
    line = ("--scale", 2, "--model", "bicubic", "--data", folder, "--save-images", folder)
    refused(command(*line), f"{folder / 'a.png'} is an image of a set; expected another place")
    assert (folder / "a.png").read_bytes() == before


def rows(done):
    """The table's lines: model to scores."""
    *_, last = re.split(r"(model .*\n)", done.stdout)
    lines = (line.split() for line in last.splitlines())
    words = {line[0]: " ".join(line[1:]) for line in lines}
    return {model: re.findall(r"\S+ / \S+", said) for model, said in words.items()}


def numbers(score):
    return f"{score['psnr']:.2f} / {score['ssim']:.4f}"


def refused(done, *parts):
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    for part in parts:
        assert part in done.stderr


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


@pytest.mark.parametrize(
    ("task", "lq", "hq"),
    [("derain", "input", "target"), ("deblur", "blur", "sharp"), ("deblur", "input", "target")],
)
def test_the_inputs_scores_are_those_of_the_tasks_metrics(task, lq, hq, tmp_path, command):
    data, report, images = (tmp_path / name for name in ("set", "scores.json", "images"))
    write_pairs(data, lq, hq)
    more = ("--json", report, "--save-images", images)
    done = command("--model", "input", "--data", data, *more, task=task)
    assert done.returncode == 0, done.stderr
    scores, rules = json.loads(report.read_text(encoding="utf-8")), protocol(task)
    pairs = open_pairs(data, 1)
    for metric, name in ((psnr, "psnr"), (ssim, "ssim")):
        expected = np.mean([metric(lq, hq, rules) for _, lq, hq in pairs])
        assert scores[name] == pytest.approx(expected, rel=1e-9)
    for name, lq, _ in pairs:
        np.testing.assert_array_equal(np.asarray(Pillow.open(images / f"{name}.png")), lq)
    assert rows(done) == {"input": [numbers(scores)]}


def test_command_scores_a_network_for_images_of_one_size(tmp_path, command):
    data = write_pairs(tmp_path / "set", "blur", "sharp")
    path, report = tmp_path / "net.safetensors", tmp_path / "scores.json"
    save(build("tiny", 1), path)  # untrained: its input
    options = ("--data", data, "--json", report)
    assert command("--model", path, *options, "--tile", 16, task="deblur").returncode == 0
    one = json.loads(report.read_text(encoding="utf-8"))
    assert command("--model", "input", *options, task="deblur").returncode == 0
    other = json.loads(report.read_text(encoding="utf-8"))
    assert {**one, "model": "input"} == other
    refused(command("--model", path, "--scale", 2, "--data", data), "a network for x1; expected")
    refused(command("--model", path, *options, "--tile", 9, task="deblur"), "got tile 9")


def test_command_scores_the_test_sets_of_rain13k_apart(tmp_path, command):
    for name in ("Test100", "Rain100L"):
        write_pairs(tmp_path / "test" / name, "input", "target")
    report = tmp_path / "scores.json"
    more = ("--json", report, "--save-images", tmp_path / "images")
    done = command("--model", "input", "--data", tmp_path / "test", *more, task="derain")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split() == ["model", "parameters", "Test100", "Rain100L"]
    scores = json.loads(report.read_text(encoding="utf-8"))
    assert list(scores["sets"]) == ["Test100", "Rain100L"]
    assert scores["psnr"] == scores["sets"]["Test100"]["psnr"]
    assert rows(done) == {"input": [numbers(each) for each in scores["sets"].values()]}
    assert (tmp_path / "images" / "Rain100L" / "b.png").exists()


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
    refused(command(*line, folder), "got the set ", "set twice; expected each set once")
    twice = ("--scale", 2, "--data", folder, "--model")
    refused(command(*twice, files[0], files[0]), "student.safetensors twice; expected each model")
    again = files[0].parent / ".." / files[0].parent.name / files[0].name
    refused(command(*twice, files[0], again), "student.safetensors twice; expected each model")
    refused(command(*twice, "bicubic", "input"), "got the model input twice; expected each model")


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
    refused(command(*line, *all_of, files[1][0]), "w6.pth holds another network, of ")
    broken = tmp_path / "nan.pth"
    torch.save({k: v + torch.nan for k, v in torch.load(path).items()}, broken)
    done = command(*line, "--model", "input", "--model", broken, "--backbone", *own)
    assert "error: nan on set: got NaN in the image; expected" in done.stderr


def test_command_says_what_a_task_has_no_use_for(tmp_path, command):
    data = write_pairs(tmp_path / "set", "blur", "sharp")
    line = ("--data", data, "--model")
    refused(command(*line, "bicubic", task="deblur"), "bicubic for --task deblur; expected input")
    refused(command(*line, "input", "--scale", 2, task="derain"), "got --scale 2 for --task derain")
    more = ("input", "--scale", 2, "--backbone", "rcan-teacher")
    refused(command(*line, *more), "got --backbone rcan-teacher for --model input; expected none")
    refused(command(*line, "input"), "got no --scale for --task sr; give --scale 2 or more")
    refused(
        command(*line, "input", "--scale", 1), "--scale must be at least 2 and at most 8, got 1"
    )
    (tmp_path / "plain").mkdir()
    Pillow.fromarray(smooth(0)).save(tmp_path / "plain" / "a.png")
    refused(
        command("--data", tmp_path / "plain", "--model", "input", task="derain"),
        "found no pairs; expected two versions of each image",
    )
