"""Options in a YAML file: read, refused, written, repeated."""

# ruff: noqa: F811  (imported fixtures)

import json
import os
import sys
from pathlib import Path

import pytest
import train_derain
import train_sr
from restoration import command, config
from restoration.training.console import RefusedError
from toys import main, no_pictures, sets, small, weights  # noqa: F401


def parsed(*line, task="sr"):
    """What a command line asks for, besides where it was written."""
    found = vars(command.parse(None, task, [str(word) for word in line]))
    del found["config"]
    return found


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "c.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["--val", "a", "--val", "b c", "--data", "\u65e5\u672c"],
        ["--lq", "low", "--gt", "high", "--val-gt", "clean"],
        ["--backbone", "net.py:Net", "width=8", "mode='a b'", "--teacher", "t.pth"],
        ["--seed", "-1", "--dcr-weight", "1e-5", "--dmm-weight", "-2", "--balance", "0"],
        ["--mixed-precision", "no", "--encoder", "null", "--teacher", "~", "--output", "007"],
        ["--teacher", "1e-3", "--encoder", "yes", "--val=-v", "--data", "a: #b", "--output", "{"],
        ["--skip-bad", "--gradient-checkpointing", "--log-with", "tensorboard", "wandb"],
        ["--teacher=", "--teacher-network", "net.py:Net", "a=[1, 2]", "--memory", "0.5"],
        pytest.param(
            ["--data", os.fsdecode(b"!\xff\xfe")],
            marks=pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere"),
        ),
    ],
    ids=str,
)
def test_what_is_written_is_what_is_read(line, tmp_path):
    path = tmp_path / "config.yaml"
    config.write(path, "python train.py", parsed(*line)["options"])
    assert parsed("--config", path) == parsed(*line)


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("seed: 5\ncrop: 9", ["--seed", 0], ["--seed", 0, "--crop", 9]),  # also a default
        ("val: [a, b]", ["--val", "c"], ["--val", "c"]),
        ("val: a", [], ["--val", "a"]),
        ("data: a\nval: b", ["--lq", "c", "--gt", "d"], ["--lq", "c", "--gt", "d", "--val", "b"]),
        ("lq: a\ngt: b", ["--data", "c"], ["--data", "c"]),
        ("backbone: [n.py:N, a=1]", ["--backbone", "tiny"], []),
        ("backbone: small", [], ["--backbone", "small"]),
        ("log-with: [wandb]", ["--log-with", "tensorboard"], ["--log-with", "tensorboard"]),
        ("skip-bad: true\nteacher:\nencoder: null\nval: []", [], ["--skip-bad"]),
        ("skip-bad: false\nmixed-precision: no", [], ["--mixed-precision", "no"]),
        ("dcr-weight: 1e-3\noutput: 007", [], ["--dcr-weight", "1e-3", "--output", "007"]),
        ("# nothing", ["--crop", 9], ["--crop", 9]),
    ],
)
def test_the_command_line_comes_first(file, text, line, expected):
    assert {**parsed("--config", file(text), *line), "options": 0} == {
        **parsed(*expected), "options": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("photos: 8", "unknown option 'photos'; expected some of scale, data, val"),
        ("batch_size: 8", "unknown option 'batch_size'; did you mean batch-size?"),
        ('output: "a\\0"', "output: got 'a\\x00'; expected text that names of files can have"),
        ('output: "\\ud800"', "output: got '\\ud800'; expected text that"),
        ("resume: true", "unknown option 'resume'"),
        ("config: other.yaml", "unknown option 'config'"),
        ("? \n: 1", "unknown option None"),
        ("iterations: many", "argument --iterations: invalid int value: 'many'"),
        ("iterations: 1.5", "argument --iterations: invalid int value: '1.5'"),
        ("iterations: true", "argument --iterations: invalid int value: 'true'"),
        ("crop: [1, 2]", "crop: got ['1', '2']; expected one value"),
        ("teacher: {a: b}", "teacher: got {'a': 'b'}; expected one value"),
        ("val: [[a]]", "val: got ['a']; expected a value or a list of them"),
        ("backbone: [null]", "backbone: got None; expected a value or a list of them"),
        ("skip-bad: 1", "skip-bad: got '1'; expected true or false"),
        ("skip-bad: [true]", "skip-bad: got ['true']; expected true or false"),
        ("method: best", "argument --method: invalid choice: 'best'"),
        ("data: ''", "argument --data: got an empty path"),
        ("backbone: [--seed]", "argument --backbone: expected at least one argument"),
        ("- seed", "got a list; expected lines of `option: value`"),
        ("seed", "got a str; expected lines of `option: value`"),
        ("seed: 1\nseed: 2", "not YAML: seed is there twice"),
        ("seed: [1", "not YAML: while parsing a flow sequence"),
        ("seed: !!python/object/apply:os.getcwd []", "not YAML: could not determine a construct"),
        (b"seed: \xff", "not YAML: 'utf-8' codec can't decode"),
        ("seed: \a", "not YAML: unacceptable character"),
        ("[" * 1000, "not YAML: "),
    ],
)
def test_what_is_wrong_is_a_line_that_names_file_and_key(file, text, said):
    path = file(text)
    with pytest.raises(RefusedError) as refused:
        parsed("--config", path)
    assert str(refused.value).startswith(f"{path}: {said}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "said"), [("absent", "No such file"), (".", "Is a directory")])
def test_a_file_that_is_not_there_is_a_line(name, said, tmp_path, monkeypatch, capsys):
    assert main(monkeypatch, train_sr, "--config", tmp_path / name) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {tmp_path / name}: {said}")
    assert err.count("\n") == 1


def test_an_option_of_another_task_is_unknown(file):
    with pytest.raises(RefusedError, match="unknown option 'scale'"):
        parsed("--config", file("scale: 2"), task="derain")


@pytest.mark.usefixtures("no_pictures")
def test_a_run_is_repeated_from_its_folder(small, sets, tmp_path, monkeypatch):
    """With its data as two folders, which a folder given now replaces."""
    own = tmp_path / "net.py"
    own.write_text(
        "from torch import nn\n"
        "class Net(nn.Conv2d):\n"
        "    def __init__(self, width=3, *, side=3):\n"
        "        super().__init__(width, 3, side, padding=side // 2)\n"
    )
    data = ["--gt", sets / "train", "--val-gt", sets / "val"]
    line = ["--backbone", f"{own}:Net", "side=5", "--seed", 3, "--method", "logits"]
    line += ["--memory", 1e-5, "--workers", 0]
    line += [*data, *small[:4], "--crop", 16, "--output", tmp_path / "one"]
    assert main(monkeypatch, train_derain, *line) == 0
    written = tmp_path / "one" / "config.yaml"
    first = written.read_text().splitlines()[0]
    assert first == f"# python examples/train_derain.py --config {written}"
    more = ["--output", tmp_path / "two"]
    assert main(monkeypatch, train_derain, "--config", written, *more) == 0
    assert weights(tmp_path / "two") == weights(tmp_path / "one")
    logs = [json.loads(Path(tmp_path, run, "log.json").read_text()) for run in ("one", "two")]
    assert logs[0] == logs[1]
    ours, theirs = written.read_text(), (tmp_path / "two" / "config.yaml").read_text()
    assert theirs == ours.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    more = ["--data", sets / "val", "--resume"]
    assert main(monkeypatch, train_derain, "--config", written, *more) == 2, "other data"
