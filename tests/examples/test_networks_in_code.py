"""Networks of the user's own code, and weights that some trainer saved of them."""

# ruff: noqa: F811  (imported fixtures)

import evaluate
import pytest
import torch
import train_sr
from restoration import networks
from restoration.networks.own import build_own, fill, is_own, parse_options, recall
from torch import nn
from toys import main, no_pictures, sets, small  # noqa: F401

CODE = """
from dataclasses import dataclass  # which looks its module up
from torch import nn

class Net(nn.Module):
    def __init__(self, scale=1, width=8, channels=3):
        super().__init__()
        conv = nn.Conv2d(channels, 3 * scale**2, 3, padding=1)
        self.body = nn.Sequential(conv, nn.PixelShuffle(scale))
        self.width = width

    def forward(self, x):
        return self.body(x)

class Stages(Net):
    def forward(self, x):
        return [self.body(x)]

class Writing(Net):
    def forward(self, x):
        return self.body(x.mul_(255))

def plain():
    return Net(2).train()

def upscaled(upscale=4):
    return Net(upscale)

def broken():
    raise KeyError("weights")

number = lambda: 3
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "my_net.py"
    path.write_text(CODE)
    return path


def test_a_name_is_a_place_in_code_or_not():
    assert is_own("a.b:Net") and is_own("net.py:Net")
    assert not is_own("small") and not is_own("https://host/file.pth")


def test_a_file_s_network_takes_scale_and_options(code):
    model = build_own(f"{code}:Net", 3, parse_options(["width=12"]))
    assert (model.width, model.training) == (12, True)
    assert model(torch.zeros(1, 3, 5, 5)).shape == (1, 3, 15, 15)
    assert build_own(f"{code}:upscaled", 3)(torch.zeros(1, 3, 5, 5)).shape == (1, 3, 15, 15)
    assert build_own(f"{code}:plain", 2).training, "the probe leaves the mode as it was"


def test_a_module_is_imported_from_the_working_directory(code, monkeypatch):
    monkeypatch.chdir(code.parent)
    monkeypatch.setattr("sys.path", ["elsewhere"])
    assert type(build_own("my_net:Net", 2)).__name__ == "Net"


def test_options_are_pythons_values_or_text():
    found = parse_options(["a=1", "b=(2, 3)", "c=True", "d=pixelshuffle", "e=x=y"])
    assert found == {"a": 1, "b": (2, 3), "c": True, "d": "pixelshuffle", "e": "x=y"}
    with pytest.raises(ValueError, match="got 'width' after a network; expected key=value"):
        parse_options(["width"])


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("nowhere.py:Net", 2, "FileNotFoundError: nowhere.py: no such file"),
        ("no.such.module:Net", 2, "ModuleNotFoundError"),
        ("{code}:Other", 2, "there is no Other"),
        ("{code}:broken", 2, "no network can be made: KeyError: 'weights'"),
        ("{code}:number", 2, "got int; expected a torch.nn.Module"),
        ("{code}:Stages", 2, "it returns list; expected one image"),
        ("{code}:Writing", 2, "it writes into its input"),
        ("{code}:plain", 4, r"it makes \(1, 3, 128, 128\) .* expected \(1, 3, 256, 256\) for x4"),
    ],
)
def test_what_is_no_network_is_told(code, name, scale, message):
    with pytest.raises(ValueError, match=message):
        build_own(name.format(code=code), scale)


def test_a_gray_network_is_told(code):
    with pytest.raises(ValueError, match=r"it does not take \(1, 3, H, W\)"):
        build_own(f"{code}:Net", 2, {"channels": 1})


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net_g.module.", "_orig_mod."])
def test_weights_are_found_under_any_wrapper(code, prefix):
    source, model = (build_own(f"{code}:Net", 2) for _ in range(2))
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    fill(model, state | {"more": torch.zeros(1)} if not prefix else state, "file.pth")
    assert all(map(torch.equal, model.parameters(), source.parameters()))


def test_other_weights_are_told_by_their_first_difference(code):
    model = build_own(f"{code}:Net", 2)
    with pytest.raises(ValueError, match=r"body.0.weight is \(27, 3, 3, 3\) in the file and \(12"):
        fill(model, build_own(f"{code}:Net", 3).state_dict(), "file.pth")
    with pytest.raises(ValueError, match=r"body\.0\.weight is none in"):
        fill(model, nn.Linear(1, 1).state_dict(), "file.pth")


def test_a_teacher_of_own_code_teaches_and_is_scored(
    code, small, sets, monkeypatch, tmp_path, capsys
):
    network, weights = f"{code}:Net", tmp_path / "own.pth"
    state = {name: 0.0 * x + 0.02 for name, x in build_own(network, 2).state_dict().items()}
    torch.save({"params": state}, weights)
    own = ["--teacher", weights, "--teacher-network", network, "width=12"]
    assert main(monkeypatch, train_sr, *small, *own) == 0
    line = ["--scale", 2, "--data", sets / "val", "--model", weights]
    assert main(monkeypatch, evaluate, *line, "--backbone", network, "width=12") == 0
    assert "mean" in capsys.readouterr().out
    assert main(monkeypatch, evaluate, *line, "--backbone", network, "channels=1") == 2
    assert "it does not take (1, 3, H, W)" in capsys.readouterr().err


def test_a_teacher_is_recognised_by_its_tensors(
    paper_networks, small, sets, monkeypatch, tmp_path, capsys
):
    from spandrel.architectures.RCAN import RCAN

    shape = {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 8, "reduction": 4}
    for scale in (2, 3):
        torch.save(RCAN(scale=scale, **shape).state_dict(), tmp_path / f"x{scale}.pth")
    assert main(monkeypatch, train_sr, *small, "--teacher", tmp_path / "x2.pth") == 0
    line = ["--scale", 2, "--data", sets / "val"]
    assert main(monkeypatch, evaluate, *line, "--model", tmp_path / "x2.pth") == 0
    capsys.readouterr()
    assert main(monkeypatch, evaluate, *line, "--model", tmp_path / "x3.pth") == 2
    assert "x3.pth is RCAN for x3; expected one for x2" in capsys.readouterr().err


def test_a_student_of_own_code_is_remembered(code, small, sets, monkeypatch, tmp_path, capsys):
    own = ["--backbone", f"{code}:Net", "width=12", "--method", "logits"]
    assert main(monkeypatch, train_sr, *small, *own) == 0
    assert main(monkeypatch, train_sr, *small, *own, "--resume") == 0
    student = tmp_path / "student.safetensors"
    assert networks.load(student).width == 12
    line = ["--scale", 2, "--data", sets / "val", "--model", student]
    assert main(monkeypatch, evaluate, *line) == 0
    capsys.readouterr()
    code.write_text(CODE + "\n# changed\n")
    assert main(monkeypatch, evaluate, *line) == 2
    assert "has changed: name the code" in capsys.readouterr().err
    assert main(monkeypatch, evaluate, *line, "--backbone", f"{code}:Net", "width=12") == 0


@pytest.mark.parametrize("name", ["os:system", "torch.hub:load", "no.such:Net"])
def test_a_file_cannot_have_any_code_called(name):
    facts = {"backbone": name, "scale": "2", "options": '["command=exit"]', "code_sha256": ""}
    with pytest.raises(ValueError, match=r"its network's code, .*, is (no torch|not there)"):
        recall(facts)
