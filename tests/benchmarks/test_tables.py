"""Every table's command, from the command line, as a user runs it."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.tables import __main__ as tables
from benchmarks.tables import report
from benchmarks.tables.runs import RECIPE_LOSSES
from benchmarks.tables.specs import TABLES
from dckd_losses.weights import COMPACT
from examples.restoration import networks
from examples.restoration.data.images import photographs, write_png
from examples.restoration.recipe import PAPER

ROOT = Path(__file__).parents[2]
STUDY = ("study", "--budget", "smoke", "--encoders")


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.tables", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
def call(monkeypatch, capsys, accelerator):
    """The same in this process: its code, and what it prints and complains of."""

    def run(*arguments):
        accelerator()
        monkeypatch.setattr("sys.argv", ["tables", *map(str, arguments)])
        code = tables.main()
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """One folder for all: tables share their runs."""
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def table5(output):
    """Its files exist, whichever tests are chosen."""
    done = command("table5", "--budget", "smoke", "--output", output)
    assert done.returncode == 0, done.stderr
    return output


def test_encoders_are_compared_with_plain_distillation(call, tmp_path, monkeypatch):
    """A table from the plan to its files, in one process: the encoders' study."""
    monkeypatch.setattr(report, "ROUNDS", 1)
    tensors = load_file(COMPACT)
    other = tmp_path / "other.safetensors"
    save_file({name: 0.5 * tensor for name, tensor in tensors.items()}, other)
    smoke = ("study", "--encoders", "compact", other, "--budget", "smoke", "--seeds", 0)
    code, printed, complained = call(*smoke, "--output", tmp_path)
    assert code == 0, complained
    assert printed.index("in all:") < printed.index("\ntraining ")
    content = json.loads((tmp_path / "study_smoke.json").read_text())
    assert content["command"].startswith("python -m benchmarks.tables study --encoders compact ")
    assert list(content["arms"]) == ["Logits", "compact", "other"]
    assert list(content["costs"]) == ["compact", "other"]
    for cost in content["costs"].values():
        assert cost["parameters"] == sum(tensor.numel() for tensor in tensors.values())
        assert cost["ms"] > 0
    scores = {name: arm["photographs"]["psnr"] for name, arm in content["arms"].items()}
    assert scores["compact"] != scores["other"]
    gain = scores["other"][0] - scores["Logits"][0]
    text = (tmp_path / "study_smoke.md").read_text()
    assert "student, teacher: tiny, small" in text
    assert f" {gain:+.3f} |" in text and f"| other | {cost['parameters']:,} | " in text
    drawn = find_spec("matplotlib") is not None
    assert ("no pictures: " in printed) != drawn
    for end in ("", "_curves", "_distances") if drawn else ():
        assert (tmp_path / f"study_smoke{end}.png").read_bytes()[1:4] == b"PNG"
    again, printed, _ = call(*smoke, "--output", tmp_path, "--plan")
    assert again == 0 and "1 to have, 1 there\n" in printed


@pytest.mark.slow
def test_table1_prints_every_network_at_every_scale(output, paper_networks):
    done = command("table1", "--output", output)
    assert done.returncode == 0, done.stderr
    rows = json.loads((output / "table1.json").read_text())["rows"]
    assert len({(row["network"], row["scale"]) for row in rows}) == 19 == len(rows)
    for row in rows:  # one decimal of a million is the paper's, of one scale only
        assert f"| {row['network']} | x{row['scale']} |" in done.stdout
        assert f"| {row['parameters']:,} |" in done.stdout
        if row["paper_millions"]:
            assert abs(row["parameters"] / 1e6 - row["paper_millions"]) < 0.25
    assert "| 2,683,059 | 2.7M | -0.02M |" in done.stdout
    nafnet = next(row for row in rows if row["network"] == "nafnet-teacher")
    assert nafnet["multiply_adds"] / 1e9 == pytest.approx(16, rel=0.01)  # its authors' figure


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_smoke_plans_trains_and_writes_the_table(table, output):
    done = command(table, "--budget", "smoke", "--output", output)
    assert done.returncode == 0, done.stderr
    for student in TABLES[table].students:
        assert f"| {student}, photographs |" in (output / f"{table}_smoke.md").read_text()
    stem = "_".join([table, "smoke", *TABLES[table].students[-1:]])
    content = json.loads((output / f"{stem}.json").read_text())
    assert list(content)[:5] == ["table", "command", "commit", "device", "arms"]
    assert content["table"] == table
    assert content["command"].startswith(f"python -m benchmarks.tables {table} --budget smoke")
    assert list(content["arms"]) == [arm.name for arm in TABLES[table].arms]
    for sets in content["arms"].values():
        assert list(sets) == ["photographs"]
        for scores in sets.values():
            assert list(scores) == ["psnr", "ssim"]
            assert len(scores["psnr"]) == len(scores["ssim"]) == 2
            assert all(map(math.isfinite, scores["psnr"]))
            assert all(0 < value <= 1 for value in scores["ssim"])
    markdown = (output / f"{stem}.md").read_text()
    for arm in TABLES[table].arms:
        assert f"| {arm.name} |" in markdown
    names = {arm.paper or arm.name for arm in TABLES[table].arms}
    for name in set(report.cited(table, TABLES[table].blocks[-1].label)) - names - {"Teacher"}:
        assert f"| {name} |" in markdown and name not in content["arms"]  # the paper's only
    if table == "table5":  # the paper's numbers stand beside ours
        assert markdown.startswith("# Table 5: DCKD's two losses\n")
        assert "\n| DCR+DMM |  |  |  | 32.92 | 0.9351 |  | +0.25 |\n" in markdown
    for end in ("", "_curves"):
        assert (output / f"{stem}{end}.png").read_bytes()[1:4] == b"PNG"
    assert (output / f"{stem}_distances.png").is_file()  # every table has DCKD
    plan, training = done.stdout.index("in all:"), done.stdout.find("\ntraining ")
    assert training == -1 or plan < training
    details = json.loads((output / f"{stem}_details.json").read_text())
    assert details["seeds"] == [0, 1]
    assert {"torch", "python", "threads"} <= details.keys()


@pytest.mark.slow
def test_a_second_call_trains_only_what_is_new(table5):
    output = table5
    smoke = ("table5", "--budget", "smoke", "--output", output, "--name", "more")
    trained = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/result.json")}
    assert len(trained) >= 9
    again = command(*smoke)
    assert "\ntraining " not in again.stdout
    assert "2 to have, 2 there\n" in again.stdout
    first = json.loads((output / "table5_smoke.json").read_text())["arms"]
    assert json.loads((output / "more.json").read_text())["arms"] == first
    more = command(*smoke, "--seeds", 0, 1, 2, "--arms", "neither", "DCR")
    assert more.returncode == 0, more.stderr
    assert more.stdout.count("\ntraining ") == 2
    arms = json.loads((output / "more.json").read_text())["arms"]
    assert list(arms) == ["neither", "DCR"]
    assert arms["DCR"]["photographs"]["psnr"][:2] == first["DCR"]["photographs"]["psnr"]
    assert all(path.stat().st_mtime_ns == then for path, then in trained.items())


@pytest.mark.slow
def test_runs_that_diverge_are_results(table5):
    """They are told, the table is written, and a second call does not try them again."""
    smoke = ("table5", "--budget", "smoke", "--output", table5, "--name", "diverged")
    odd = ("--arms", "neither", "DCR", "--seeds", 0, "--lr", 1e20, "--iterations", 4)
    first, second = command(*smoke, *odd), command(*smoke, *odd)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.count("\ndiverged: step ") == 2
    assert "\ntraining " not in second.stdout
    arms = json.loads((table5 / "diverged.json").read_text())["arms"]
    assert all(arms[name]["photographs"]["psnr"] == [None] for name in ("neither", "DCR"))
    lines = (table5 / "diverged.md").read_text().splitlines()
    assert any(line.startswith("| DCR (1 of 1 diverged) |  |  |  |") for line in lines)


@pytest.mark.slow
def test_plan_trains_nothing(tmp_path):
    done = command(
        "table5", "--budget", "smoke", "--plan", "--output", tmp_path, "--iterations", 3600,
        "--arms", "neither", "--seeds", 7,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3,600 steps left" in done.stdout
    assert "in all: " in done.stdout and "hours on the CPU" in done.stdout
    assert not list(tmp_path.glob("**/*.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "label", "teacher", "scale", "places"),
    [
        (
            "table5", "RCAN x2", "rcan-teacher", 2,
            ["sr/train/DIV2K/DIV2K_train_HR", "sr/Set14/HR", "sr/Urban100/HR"],
        ),
        (
            "table3", "NAFNet", "nafnet-teacher", 1,
            [f"deblur/GoPro/{x}" for x in ("train/blur", "train/sharp", "test/blur", "test/sharp")],
        ),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("paper_networks")
def test_the_papers_budget_trains_its_networks(table, label, teacher, scale, places, tmp_path):
    """Its recipe, shortened to two steps of one small crop, with an untrained teacher's file."""
    image = photographs("held_out")["chelsea"][100:148, 100:148]
    for place in places:
        write_png(image, tmp_path / place / "cat.png")
    networks.save(networks.build(teacher, scale), tmp_path / "teacher.safetensors")
    last = TABLES[table].arms[-1].name
    done = command(
        table, "--budget", "paper", "--block", label, "--arms", last, "--iterations", 2,
        "--batch-size", 1, "--crop", 16, "--encoder", "compact", "--output", tmp_path,
        "--teacher", tmp_path / "teacher.safetensors", DCKD_DATA=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    arms = json.loads((tmp_path / f"{table}_paper.json").read_text())["arms"]
    block = next(block for block in TABLES[table].blocks if block.label == label)
    assert list(arms[last]) == list(block.sets)
    (run,) = tmp_path.glob("runs/*/result.json")
    settings = json.loads(run.read_text())["settings"]
    assert settings["network"] == block.student
    recipe = asdict(replace(PAPER[block.student].shortened(2), crop=16, batch_size=1))
    expected = {name: value for name, value in recipe.items() if name not in RECIPE_LOSSES}
    assert settings["recipe"] == json.loads(json.dumps(expected))
    assert settings["losses"]["form"] == "released"
    assert settings["losses"]["balance"] is None
    markdown = (tmp_path / f"{table}_paper.md").read_text()
    numbers = report.cited(table, label)[last][block.sets[-1]]
    row = next(r for r in reversed(markdown.splitlines()) if r.startswith(f"| {last} |"))
    ours, theirs, difference = (float(row.split("|")[i].split("±")[0]) for i in (2, 5, 7))
    assert theirs == numbers[0]
    assert difference == pytest.approx(ours - theirs, abs=0.011)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "DCKD_DATA is not set"),
        (("--budget", "paper"), "rcan-teacher cannot be fetched by a name"),
        (("--budget", "paper", "--student", "tiny"), "got --student tiny; expected swinir-student"),
        (("--budget", "smoke", "--arms", "Magic"), "got arm 'Magic'; expected one of 'neither'"),
        (
            ("--budget", "smoke", "--block", "EDSR x2"),
            "got --block 'EDSR x2'; expected one of RCAN",
        ),
        (("--budget", "smoke", "--teacher", "no.safetensors"), "no.safetensors"),
        (("--budget", "smoke", "--iterations", "0"), "got --iterations 0"),
        (("--budget", "smoke", "--balance", "-1"), "got --balance -1.0; expected a number from 0"),
        (("--budget", "smoke", "--lr", "inf"), "got --lr inf; expected a number from 0"),
        (("--budget", "smoke", "--interval", "0"), "got --interval 0; expected a number from 1"),
        (("--budget", "smoke", "--logits-weight", "nan"), "got --logits-weight nan; expected"),
        (("--budget", "smoke", "--teacher", ""), "got --teacher ''; expected a text"),
        (("--budget", "smoke", "--name", "../x"), "got --name ../x; expected one without folders"),
        (("--budget", "smoke", "--crop", "7"), "outputs of 14x14 pixels; expected 16"),
        (("--budget", "smoke", "--crop", "900"), "no training image is 900x900"),
        (("--budget", "smoke", "--seeds", "-1"), "got --seeds -1"),
        (("--budget", "smoke", "--seeds", "0", "0"), "got --seeds 0 0; expected different"),
        (("--budget", "smoke", "--encoders", "compact"), "got --encoders for table5"),
        ((*STUDY, "nowhere.safetensors"), "nowhere.safetensors: no such file"),
        (
            (*STUDY, *("a/x.safetensors", "b/x.safetensors")),
            "got encoders x, x; expected different",
        ),
        (("--budget", "smoke", "--teacher-network", "x.py:X"), "got --teacher-network alone"),
        (("--budget", "smoke", "--sets", "Nowhere"), "got set Nowhere, no folder Nowhere"),
        (("--budget", "smoke", "--sets", *("photographs",) * 2), "expected folders of different"),
    ],
)
def test_refusals_are_one_sentence(arguments, said, tmp_path, monkeypatch, call):
    monkeypatch.setenv("DCKD_DATA", "")
    table = () if "study" in arguments else ("table5",)
    code, printed, complained = call(*table, *arguments, "--output", tmp_path)
    assert code == 2 and "training " not in printed
    assert said in complained
    assert complained.startswith("error: ") and complained.count("\n") == 1
