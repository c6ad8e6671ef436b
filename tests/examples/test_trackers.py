"""A run's log in TensorBoard and Weights & Biases, read back."""

# ruff: noqa: F811  (imported fixtures)

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import train_sr
from accelerate.utils import LoggerType
from restoration.training import loop
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import Toy, main, no_pictures, sets, small  # noqa: F401


def read(folder):
    """Each name's values by step."""
    log = EventAccumulator(str(folder / "dckd")).Reload()
    events = {name: log.Scalars(name) for name in log.Tags()["scalars"]}
    for name, values in events.items():
        assert len({event.step for event in values}) == len(values), f"{name}: a step twice"
    return {name: {e.step: e.value for e in values} for name, values in events.items()}, log


def expected(records):
    """The same of the records, in the precision of TensorBoard's files."""
    found = {}
    for record in records:
        for name, value in record.items():
            each = [(f"/{i}", v) for i, v in enumerate(value, 1)] if isinstance(value, list) else 0
            for level, number in each or [("", value)]:
                found.setdefault(name + level, {})[int(record["step"])] = float(np.float32(number))
    del found["step"]
    return found


@pytest.mark.usefixtures("no_pictures")
def test_tensorboard_shows_what_log_json_has(small, tmp_path, monkeypatch, capsys):
    assert main(monkeypatch, train_sr, *small, "--log-with", "tensorboard") == 0
    assert f"tensorboard --logdir {tmp_path} shows it" in capsys.readouterr().out
    seen, log = read(tmp_path)
    rates = seen.pop("lr")
    assert seen == expected(json.loads((tmp_path / "log.json").read_text()))
    assert {"l1", "kd", "dcr", "dmm", "ratio", "psnr", "positive/5", "negative/1"} < seen.keys()
    assert list(rates) == [1, 2, 3]
    assert rates[1] < rates[2]
    pictures = log.Images("sample")
    assert [picture.step for picture in pictures] == [1, 2, 3]
    assert pictures[0].width == 3 * 44, "degraded, restored and true, side by side"


def test_a_killed_and_resumed_run_has_each_step_once(tmp_path, monkeypatch, accelerator):
    """Also those that were logged after the last checkpoint, which it goes through again."""
    monkeypatch.setattr(loop, "LOG_EVERY", 1)

    def toy():
        made = accelerator(log_with="tensorboard", project_dir=tmp_path)
        return Toy(tmp_path, accelerator=made, distils=False, save_every=3)

    def die():
        raise SystemExit

    with pytest.raises(SystemExit):
        toy().at_step(6, die).trained()
    assert list(read(tmp_path)[0]["l1"]) == [1, 2, 3, 4, 5]
    resumed = toy().trained(resume=True)
    seen = read(tmp_path)[0]
    assert len(seen.pop("lr")) == 6
    assert seen == expected(resumed.run.records)
    toy().trained()  # anew, in its place
    assert list(read(tmp_path)[0]["l1"]) == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def wandb(monkeypatch):
    """Stands in for the package, which needs an account; its runs, and what was logged."""
    fake, seen = ModuleType("wandb"), SimpleNamespace(runs=[], values=[])

    def init(**settings):
        seen.runs.append(settings)
        run = SimpleNamespace(finish=lambda: None)
        run.log = lambda values, step=None: seen.values.append((step, values))
        return run

    fake.init, fake.Image = init, lambda image: image.shape
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    return seen


@pytest.mark.usefixtures("no_pictures")
def test_weights_and_biases_go_on_with_the_same_run(wandb, small, tmp_path, monkeypatch):
    line = [*small, "--method", "logits", "--log-with", "wandb"]
    for more in ([], ["--resume"], []):
        assert main(monkeypatch, train_sr, *line, *more) == 0
    first, resumed, anew = (run.pop("id") for run in wandb.runs)
    assert first == resumed != anew
    assert wandb.runs[0] == {
        "project": "dckd", "dir": str(tmp_path), "name": tmp_path.name, "resume": "allow",
    }  # fmt: skip
    records = json.loads((tmp_path / "log.json").read_text())
    numbers = [(step, values) for step, values in wandb.values if "sample" not in values]
    assert [step for step, _ in numbers] == [1, 2, 3] * 2
    assert [values["l1"] for _, values in numbers[3:]] == [record["l1"] for record in records]
    assert (3, {"sample": [(40, 132, 3)]}) in wandb.values


def test_a_tracker_that_does_not_start_is_a_line(wandb, small, monkeypatch, capsys):
    def init(**settings):
        raise TypeError("no API key:\nlog in")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    assert main(monkeypatch, train_sr, *small, "--method", "logits", "--log-with", "wandb") == 2
    said = "error: --log-with wandb: it does not start: no API key: log in\n"
    assert capsys.readouterr().err == said
