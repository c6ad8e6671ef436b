"""The three training commands as a user runs them, within this process."""

# ruff: noqa: F811  (imported fixtures)

import pytest

pytest.importorskip("matplotlib")

import io
import json
import os
import re
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from itertools import combinations
from pathlib import Path

import evaluate
import prepare
import torch
import train_deblur
import train_derain
import train_sr
from accelerate import Accelerator
from PIL import Image as Pillow
from restoration import command, networks, resolve
from restoration.data.crops import RandomCrops
from restoration.data.datasets import pairs_from_images
from restoration.data.images import photographs
from restoration.results import export, report
from restoration.results.evaluation import evaluate as score
from toys import (  # noqa: F401
    ROOT,
    assert_same,
    main,
    no_pictures,
    options,
    sets,
    small,
    weights,
    write_pairs,
)

SAME_SIZE = {"deblur": train_deblur, "derain": train_derain}
LAYOUTS = {"deblur": ("blur", "sharp"), "derain": ("input", "target")}
WRITTEN = {
    *(".run.lock", "checkpoint.pt", "config.yaml", "curves.png", "log.json", "metrics.json"),
    *("best.safetensors", "side_by_side.png", "student.safetensors"),
}
tasks = pytest.mark.parametrize("task", list(SAME_SIZE))


def read(path):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def done(sets, tmp_path_factory):
    """A run of five steps: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("results") / "deep" / "run"
    line = options(data=sets / "train", val=sets / "val", iterations=5, batch_size=1, crop=8)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        assert main(patch, train_sr, *line, *options(seed=3, output=folder)) == 0
    return folder, out.getvalue(), err.getvalue()


class TestResults:
    """Of one run of five steps."""

    def test_every_file_is_written(self, done):
        folder, *_ = done
        assert {path.name for path in folder.iterdir()} == WRITTEN
        for picture in ("curves.png", "side_by_side.png"):
            assert min(Pillow.open(folder / picture).size) > 200
        assert networks.load(folder / "student.safetensors").tail.weight.abs().max() > 0

    def test_metrics_are_exactly_these(self, done):
        metrics = read(done[0] / "metrics.json")
        val = metrics.pop("val")
        best = max(read(done[0] / "log.json"), key=lambda record: record["psnr"])
        facts = {"task": "sr", "scale": 2, "method": "dckd", "iterations": 5, "seed": 3}
        facts["best"] = {"step": best["step"], "psnr": best["psnr"]}
        assert metrics == facts
        assert list(val) == ["val"]
        assert list(val["val"]) == ["input", "student", "teacher"]
        for scores in val["val"].values():
            assert list(scores) == ["psnr", "ssim"]
            assert 10 < scores["psnr"] < 60
            assert 0 < scores["ssim"] < 1

    def test_evaluate_agrees_and_needs_nothing_else(self, done, sets, tmp_path, monkeypatch):
        folder, out, _ = done
        files = [folder / f"{name}.safetensors" for name in ("student", "best")]
        line = ["--model", "bicubic", *files, train_sr.TEACHERS[2], "--json", tmp_path / "a.json"]
        assert main(monkeypatch, evaluate, *line, *options(scale=2, data=sets / "val")) == 0
        bicubic, student, best, teacher = read(tmp_path / "a.json")["models"].values()
        metrics = read(folder / "metrics.json")
        seen = {"input": bicubic, "student": student, "teacher": teacher}
        for who, scores in metrics["val"]["val"].items():
            assert {k: seen[who][k] for k in scores} == pytest.approx(scores, abs=1e-6)
        assert best["psnr"] == pytest.approx(metrics["best"]["psnr"], abs=1e-5)
        said = "best.safetensors: the validated student of the highest PSNR, {psnr:.2f} dB at step"
        assert f"{said} {{step}}\n".format(**metrics["best"]) in out

    def test_what_it_prints(self, done):
        folder, out, _ = done
        facts, table = out.split("PSNR (dB) / SSIM on Y, without a border of 2 pixels\n")
        assert len(facts.splitlines()) <= 20
        assert max(map(len, facts.splitlines())) <= 100 + len(str(folder))
        for fact in (
            *("l1 + kd + 0.1 dcr", "9,492 parameters", "152,332", "compact", "seed 3"),
            *("held out    val: a, b", "ratio       in the log: the gradient norm of DCKD"),
        ):
            assert fact in facts
        for name in ("train", "val"):
            assert f"{name}: its images are shrunk by MATLAB's bicubic\n" in facts
        assert table.splitlines()[0].split() == ["set", "bicubic", "DCKD", "teacher"]
        row = table.splitlines()[1]
        assert row.startswith("val ")
        for scores in read(folder / "metrics.json")["val"]["val"].values():
            assert f"{scores['psnr']:.2f} / {scores['ssim']:.4f}" in row

    def test_the_log_has_a_line_a_validation_and_all_losses(self, done):
        err = done[2]
        assert "\r" not in err
        lines = [line for line in err.splitlines() if "left" in line]
        assert len(lines) == 5
        for part in ("5/5 ", "it/s", "left", "l1 ", "kd ", "dcr ", "dmm ", "ratio ", "psnr "):
            assert part in lines[-1]
        for record in read(done[0] / "log.json"):
            assert 0 < record["ratio"] < 1e4
            assert len(record["positive"]) == len(record["negative"]) == 5


def test_names_and_scores_of_any_kind_are_printed_drawn_and_written(
    small, tmp_path, monkeypatch, capsys
):
    """PSNR of identical images is infinite, which JSON does not know."""
    names = ["$x_1^{$", "%s {} \\frac", "_\u65e5\u672c\nline"]
    names += [os.fsdecode(b"!\xff\xfe")] * (sys.platform == "linux")
    for name in names:
        (tmp_path / "odd").mkdir(exist_ok=True)
        Pillow.new("RGB", (40, 44)).save(tmp_path / "odd" / f"{name}.png")
    line = ["--data", tmp_path / "odd", "--val", tmp_path / "odd", "--method", "scratch"]
    assert main(monkeypatch, train_sr, *small[:2], *small[-2:], *line, "--crop", 8) == 0
    assert {path.name for path in tmp_path.iterdir()} == WRITTEN | {"odd"}
    assert {name for name in WRITTEN if not name.startswith(".")} <= {*resolve.WRITTEN}
    scores = read(tmp_path / "metrics.json")["val"]["odd"]["input"]
    assert scores == {"psnr": None, "ssim": 1}
    assert "inf / 1.0000" in capsys.readouterr().out


@pytest.mark.parametrize("script", [train_sr, train_deblur, train_derain])
def test_the_step_is_the_papers_loss(script, small, monkeypatch):
    """Eq. 10 with its two pixel losses; and DCKD counts the steps of the optimizer."""
    caught = []
    without_training(monkeypatch, script)
    monkeypatch.setattr(
        script, "train", lambda run, step, dckd, resume: caught.append((run, step, dckd))
    )
    line = [*small, "--dcr-weight", 0.2, "--dmm-weight", 0.01, "--crop", 16]
    line += ["--val-every", 2, "--save-every", 3, "--workers", 1, "--gradient-checkpointing"]
    assert main(monkeypatch, script, *line) == 0
    ((run, step, dckd),) = caught
    assert (run.val_every, run.save_every, run.workers) == (2, 3, 1)
    assert "forward" in vars(run.student.body[0]), "its features are computed again"
    teacher = networks.load(train_sr.TEACHERS[2] if script is train_sr else script.TEACHER)
    lq, gt = (torch.stack(images) for images in zip(*(run.crops[i] for i in range(2)), strict=True))
    run.log_due = True
    loss, terms = step(lq, gt)
    output = run.student(lq)
    pixel = (output - gt).abs().mean(), (output - teacher(lq)).abs().mean()
    first = "l1" if script is train_sr else "pixel"
    torch.testing.assert_close((terms[first], terms["kd"]), pixel)
    torch.testing.assert_close(loss, sum(pixel) + 0.2 * terms["dcr"] + 0.01 * terms["dmm"])
    assert terms["ratio"] > 0
    loss.backward()
    run.optimizer.step()
    assert dckd.history.iteration == 1


@pytest.mark.usefixtures("no_pictures")
class TestMethods:
    def test_they_differ_in_nothing_but_the_losses(self, small, tmp_path, monkeypatch):
        starts, orders, students = [], [], {}
        crops, train = RandomCrops.__getitem__, train_sr.train

        def spy(self, index):
            orders[-1].append((index, crops(self, index)[0].sum().item()))
            return crops(self, index)

        def noting(run, *args, **kwargs):
            starts.append({name: p.clone() for name, p in run.student.state_dict().items()})
            orders.append([])
            train(run, *args, **kwargs)

        monkeypatch.setattr(RandomCrops, "__getitem__", spy)
        monkeypatch.setattr(train_sr, "train", noting)
        logged = {"scratch": set(), "logits": {"kd"}, "dmm": {"kd", "dmm", "ratio"}}
        logged["dcr"] = {"kd", "dcr", "ratio", "positive", "negative"}
        logged["dckd"] = logged["dcr"] | logged["dmm"]
        for method in command.METHODS:
            assert main(monkeypatch, train_sr, *small, "--method", method) == 0
            students[method] = weights(tmp_path)
            assert set(read(tmp_path / "log.json")[0]) == {"step", "l1", "psnr"} | logged[method]
        assert len(orders[0]) == 3
        for start, order in zip(starts, orders, strict=True):
            assert order == orders[0]
            assert_same(start, starts[0])
        assert all(a != b for a, b in combinations(students.values(), 2))
        nothing = ["--encoder", "nowhere", "--method", "logits"]  # which needs none
        for line in (nothing, ["--dcr-weight", 0, "--dmm-weight", 0]):
            assert main(monkeypatch, train_sr, *small, *line) == 0
            assert weights(tmp_path) == students["logits"]

    @pytest.mark.parametrize(
        ("line", "changed"),
        [
            ([], {}),
            (["--method", "dcr"], {"dmm_weight": 0}),
            (["--method", "dmm", "--form", "released"], {"dcr_weight": 0, "form": "released"}),
            (["--dcr-weight", 0.2], {"dcr_weight": 0.2, "balance": None}),
            (["--dcr-weight", 0.2, "--balance", 0.3], {"dcr_weight": 0.2}),
            (["--dmm-weight", 2, "--balance", 0.5], {"dmm_weight": 2, "balance": 0.5}),
            (["--balance", 0], {"balance": None}),
        ],
    )
    def test_the_command_lines_losses(self, line, changed):
        """Balanced unless weights are given, and then only if a balance is, too."""
        args = command.parse(None, "sr", [str(word) for word in line])
        found = resolve.dckd_settings(args, resolve.recipe_of(args, Accelerator(cpu=True)))
        usual = {"dcr_weight": 0.1, "dmm_weight": 0.001, "form": "cross_entropy", "balance": 0.3}
        assert found == usual | changed

    def test_the_seed_decides_and_scratch_needs_no_teacher(self, small, tmp_path, monkeypatch):
        students = []
        for seed in (0, 0, 1):
            line = ["--method", "scratch", "--scale", 3, "--seed", seed]
            assert main(monkeypatch, train_sr, *small, *line) == 0
            students.append(weights(tmp_path))
        assert students[0] == students[1] != students[2]
        assert list(read(tmp_path / "metrics.json")["val"]["val"]) == ["input", "student"]
        teacher = networks.load(tmp_path / "student.safetensors")
        assert teacher.scale == 3
        networks.save(teacher, tmp_path / "teacher.safetensors")
        taught = ["--method", "logits", "--scale", 3, "--teacher", tmp_path / "teacher.safetensors"]
        assert main(monkeypatch, train_sr, *small, *taught) == 0

    def test_the_student_of_plain_distillation_is_shown_where_there_is_one(
        self, sets, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.chdir(tmp_path)  # the output folders are the default ones
        data = {"data": sets / "train", "val": sets / "val", "iterations": 3, "batch_size": 1}
        line = options(crop=8, **data)
        assert main(monkeypatch, train_sr, *line, "--method", "logits") == 0
        plain, other = (Path("runs", name) for name in ("sr_x2_logits_0", "sr_x2_dmm_0"))
        drawn = []
        monkeypatch.setattr(report.figures, "side_by_side", lambda *a: drawn.append(list(a[1])))
        for more, damage, shown in (([], 0, True), (["--crop", 9], 0, False), ([], 9, False)):
            student = plain / "student.safetensors"
            student.write_bytes(student.read_bytes()[damage:])
            capsys.readouterr()
            assert main(monkeypatch, train_sr, *line, "--method", "dmm", *more) == 0
            titles = ["bicubic", *["plain distillation"] * shown, "student", "teacher"]
            assert drawn[-1] == titles
            header = ["set", *" ".join(titles).split()]
            assert header in [text.split() for text in capsys.readouterr().out.splitlines()]
            val = read(other / "metrics.json")["val"]["val"]
            assert list(val) == ["input", *["logits"] * shown, "student", "teacher"]
            if shown:
                assert val["logits"] == read(plain / "metrics.json")["val"]["val"]["student"]


@pytest.mark.parametrize(
    "said",
    [
        "--log-with tensorboard: not installed; run pip install tensorboard",
        "--log-with wandb: not installed; run pip install wandb",
        "--export onnx: onnxruntime not installed; run pip install onnxruntime",
    ],
)
def test_missing_packages_are_a_line_before_training(said, small, monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: name if name != "onnxruntime" else None)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    assert main(monkeypatch, train_sr, *small, *said.partition(":")[0].split()) == 2
    assert capsys.readouterr() == ("", f"error: {said}\n")


@pytest.mark.usefixtures("no_pictures")
def test_what_is_said_of_checkpoints_at_the_start(small, monkeypatch, capsys):
    line = [*small, "--method", "logits"]
    anew, aside = "no checkpoint in ", "an earlier run's checkpoint is put aside"
    for more, said in ((["--resume"], [anew]), (["--resume"], []), ([], [aside])):
        assert main(monkeypatch, train_sr, *line, *more) == 0
        out = capsys.readouterr().out
        assert [text for text in (anew, aside) if text in out] == said


class TestSameSize:
    """Deblurring and deraining."""

    @tasks
    def test_the_embedded_teacher_restores(self, task):
        """On photographs that it never saw; what its card says is measured at length."""
        script = SAME_SIZE[task]
        assert script.TEACHER.stat().st_size < 700_000
        teacher = networks.load(script.TEACHER)
        assert (teacher.channels, teacher.blocks, teacher.scale) == (32, 8, 1)
        degradation = getattr(script, {"deblur": "camera_motion", "derain": "rain"}[task])
        corner = {"cat": photographs("held_out")["chelsea"][:160, :160]}
        pairs = pairs_from_images(corner, 1, degradation)
        scores = [score(model, pairs, 1, task=task)["psnr"] for model in (None, teacher)]
        assert scores[1] > scores[0] + {"deblur": 0.5, "derain": 5}[task]

    @tasks
    def test_photographs_by_default(self, task, tmp_path, monkeypatch, capsys):
        """A short run of everything: the same table, pictures and curves as for SR."""
        few = {name: image[:48, :48] for name, image in photographs("held_out").items()}
        monkeypatch.setattr(SAME_SIZE[task], "photographs", lambda split: few)
        line = ["--iterations", 2, "--batch-size", 1, "--crop", 16, "--seed", 3]
        assert main(monkeypatch, SAME_SIZE[task], *line, "--output", tmp_path) == 0
        assert {path.name for path in tmp_path.iterdir()} == WRITTEN
        val = read(tmp_path / "metrics.json")["val"]["photographs"]
        assert list(val) == ["input", "student", "teacher"]
        assert val["teacher"]["psnr"] > val["input"]["psnr"]
        where = {
            "deblur": "in RGB, border included, SSIM over the volume",
            "derain": "on Y in whole numbers, border included",
        }
        said, table = capsys.readouterr().out.split(f"PSNR (dB) / SSIM {where[task]}\n")
        assert table.splitlines()[0].split() == ["set", "input", "DCKD", "teacher"]
        assert table.splitlines()[-1].startswith("next: --method logits and then this again")
        held_out = "photographs: chelsea-0, coffee-0, rocket-0, chelsea-1, coffee-1, rocket-1"
        for fact in ("0.1 dcr + 0.001 dmm, balanced to 0.3,", "24 images", held_out, "154,924"):
            assert fact in said

    @pytest.mark.usefixtures("no_pictures")
    def test_pairs_on_disk_and_resuming(self, tmp_path, monkeypatch, capsys):
        data, script = write_pairs(tmp_path / "set", "input", "target"), train_derain
        line = ["--data", data, "--val", data, "--method", "logits", "--batch-size", 1]
        line += ["--crop", 16, "--iterations", 4]
        states = []
        for memory in (1, 0):  # in memory, and read by processes that are ahead
            more = ["--output", tmp_path / str(memory), "--memory", memory]
            assert main(monkeypatch, script, *line, *more) == 0
            states.append(weights(tmp_path / str(memory)))
        assert states[0] == states[1]
        assert main(monkeypatch, script, *line, *more, "--resume") == 0
        assert weights(tmp_path / "0") == states[0]
        broken = data / "input" / "a.png"
        broken.write_bytes(broken.read_bytes()[:300])
        capsys.readouterr()
        more = ["--output", tmp_path / "x", "--memory", 0]
        assert main(monkeypatch, script, *line, *more) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"error: {broken}: cannot be read as an image" in said

    @tasks
    def test_what_is_made_of_images_without_pairs_is_said(
        self, task, tmp_path, monkeypatch, capsys
    ):
        script, data = SAME_SIZE[task], write_pairs(tmp_path / "set", *LAYOUTS[task])
        alone = write_pairs(tmp_path / "plain", *LAYOUTS[task]) / LAYOUTS[task][1]
        without_training(monkeypatch, script)
        line = ["--method", "scratch", "--crop", 16, "--output", tmp_path / "out", "--data", data]
        made = {"deblur": "blurred", "derain": "rained on"}[task]
        for val, said in ((data, []), (alone, [f"no pairs in {alone}: its images are {made}"])):
            assert main(monkeypatch, script, *line, "--val", val) == 0
            out = capsys.readouterr().out
            assert [text.strip() for text in out.splitlines() if "no pairs" in text] == said


def without_training(monkeypatch, script):
    monkeypatch.setattr(script, "train", lambda *args, **kwargs: None)
    monkeypatch.setattr(script.report, "finish", lambda *args: None)


@pytest.mark.slow
@pytest.mark.usefixtures("paper_networks")
@pytest.mark.parametrize(
    ("script", "name", "loss"),
    [
        (train_sr, "swinir-light", "l1"),
        (train_deblur, "nafnet-student", "psnr"),
        (train_derain, "restormer-student", "l1"),
    ],
)
def test_the_papers_networks_by_the_same_command(script, name, loss, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    scale, teacher = 2 if script is train_sr else 1, tmp_path / "teacher.safetensors"
    networks.save(networks.build(networks.teacher_of(name), scale), teacher)
    data = write_pairs(tmp_path / "set", "blur", "sharp")
    data = data / "sharp" if scale == 2 else data
    line = options(data=data, val=data, backbone=name, teacher=teacher, output=tmp_path / "out")
    line += options(iterations=1, crop=16, batch_size=1, method="logits")
    assert main(monkeypatch, script, *line, "--gradient-checkpointing") == 0
    student = networks.load(tmp_path / "out" / "student.safetensors")
    assert (student.backbone, student.scale) == (name, scale)
    assert f"logits: {loss} + kd" in capsys.readouterr().out  # its small recipe
    first = read(tmp_path / "out" / "log.json")[0]
    assert first.get("pixel", 0) <= 0 if loss == "psnr" else first.get("pixel", 1) > 0


def test_a_papers_recipe_is_printed_in_full(tmp_path, monkeypatch, capsys):
    pytest.importorskip("spandrel", exc_type=(ImportError, RuntimeError))
    data = write_pairs(tmp_path / "set", "input", "target")
    without_training(monkeypatch, train_derain)
    monkeypatch.setattr(resolve, "open_teacher", lambda *args: None)
    line = ["--data", data, "--val", data, "--recipe", "paper", "--method", "scratch"]
    line += ["--backbone", "restormer-student", "--output", tmp_path / "out"]
    assert main(monkeypatch, train_derain, *line) == 0
    said = capsys.readouterr().out
    for fact in (
        *("300,000 of 64 crops of 128x128", "40 crops of 160x160", "8 crops of 384x384"),
        *("at 92,000", "at 276,000", "adamw, betas (0.9, 0.999), weight decay 0.0001"),
        *("clipped to 0.01", "0.0003, constant for 92,000 steps, then by a cosine"),
    ):
        assert fact in said
    assert len(said.splitlines()) <= 20
    assert max(map(len, said.splitlines())) <= 110 + len(str(tmp_path))


def test_a_data_set_without_options_is_scikit_images(tmp_path, monkeypatch, capsys):
    runs = []
    without_training(monkeypatch, train_sr)
    monkeypatch.setattr(train_sr, "train", lambda run, *args, **kwargs: runs.append(run))
    assert main(monkeypatch, train_sr, "--output", tmp_path) == 0
    trained_on = [pair.name for pair in runs[0].crops.pairs]
    assert len(trained_on) == 8
    out = capsys.readouterr().out
    (held_out,) = [line for line in out.splitlines() if line.startswith("held out")]
    assert held_out.split(": ")[1].split(", ") == ["chelsea", "coffee", "rocket"]
    assert not set(trained_on) & {"chelsea", "coffee", "rocket"}
    for fact in ("dckd", "compact", "tiny", "scale 2"):
        assert fact in out


@pytest.mark.parametrize(
    ("backbone", "given", "set_to"),
    [("tiny", {}, [1]), ("tiny", {"OMP_NUM_THREADS": "2"}, []), ("rcan-student", {}, [])],
)
def test_small_networks_take_one_thread_unless_told(monkeypatch, backbone, given, set_to):
    chosen = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    resolve.accelerator_of(command.parse(None, "sr", ["--backbone", backbone]))
    assert chosen == set_to


def test_settings_leave_out_only_what_cannot_matter():
    known = {"config", "options", "output", "resume", "log_with", "export"}  # of no account
    known |= {"val_every", "save_every", "workers", "memory", "gradient_checkpointing"}  # nor these
    known |= {"data", "val", "encoder", "teacher", "skip_bad"}  # by checksum
    known |= {"recipe", "iterations", "batch_size", "crop", "form", "balance", *resolve.WEIGHTS}
    known |= {"mixed_precision", "gradient_accumulation"}  # by the accelerator
    assert vars(command.parse(None, "sr", [])).keys() - known == set(resolve.DECISIVE)


def test_the_readmes_commands_are_understood(monkeypatch):
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"(?m)^(?:.*&& )?(?:python|accelerate launch) (examples/.*)$", text)
    known = {"evaluate.py": evaluate.arguments, "prepare.py": prepare.arguments}
    seen = []
    for line in lines:
        path, *args = shlex.split(line, comments=True)
        monkeypatch.setattr(sys, "argv", [path, *args])
        name = Path(path).name
        task = name.removeprefix("train_").removesuffix(".py")
        seen.append(known[name]() if name in known else command.parse(None, task))
    assert len(seen) >= 15
    named = [args for args in seen if getattr(args, "teacher", None) in networks.KNOWN]
    assert named and {"paper"} == {args.recipe for args in named}


@pytest.mark.parametrize("task", ["sr", "deblur", "derain"])
def test_help_offers_a_task_its_own_networks_and_each_default_once(task):
    parser = command.parser_of("What it does.", task)
    text = " ".join(parser.format_help().split()).replace("- ", "-")  # where lines were broken
    offered = {"sr": ("swinir-light", "swinir-x4"), "deblur": ("nafnet-student", "nafnet-gopro")}
    for known, names in offered.items():
        assert all((name in text) == ((known == "sr") == (task == "sr")) for name in names)
    for weight in ("DCR's weight (default: 0.1)", "DMM's weight (default: 0.001)"):
        assert text.count(weight) == 1
    for action in parser._actions:
        assert action.help.count("default:") <= 1 and action.option_strings[0] in text


@pytest.mark.long
@pytest.mark.parametrize("task", ["sr", "deblur", "derain"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_default_run_gains_half_a_decibel(task, seed, tmp_path, monkeypatch):
    script = {"sr": train_sr, **SAME_SIZE}[task]
    assert main(monkeypatch, script, "--seed", seed, "--output", tmp_path) == 0
    scores = read(tmp_path / "metrics.json")["val"]["photographs"]
    assert scores["student"]["psnr"] >= scores["input"]["psnr"] + 0.5
    assert scores["student"]["ssim"] > scores["input"]["ssim"]
