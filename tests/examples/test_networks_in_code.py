"""Networks of the user's own code, and weights that some trainer saved of them."""

# ruff: noqa: F811  (imported fixtures)

import copy
from functools import partial

import evaluate
import numpy as np
import pytest
import torch
import train_sr
from restoration import networks
from restoration.networks.own import (
    FACTS,
    _module,
    build_own,
    check_crops,
    fill,
    parse_options,
    recall,
)
from restoration.results.evaluation import restore
from restoration.training.console import RefusedError
from torch import nn
from toys import main, no_pictures, sets, small  # noqa: F401

CODE = """
from dataclasses import dataclass  # which looks its module up

import torch
from beside import conv  # a file next to this one
from torch import nn

class Net(nn.Module):
    def __init__(self, scale=1, width=8, channels=3):
        super().__init__()
        self.body = nn.Sequential(conv(channels, 3 * scale**2), nn.PixelShuffle(scale))
        self.width = width

    def forward(self, x):
        return self.body(x)

class Returns(Net):
    def forward(self, x):
        return {kind: kind([("a", self.body(x))]) for kind in (list, tuple, dict)}[self.kind]

class Lists(Returns): kind = list
class Tuples(Returns): kind = tuple
class Dicts(Returns): kind = dict

class Writing(Net):
    def forward(self, x):
        return self.body(x.mul_(255))

class Conditioned(Net):
    def forward(self, x, sigma):
        return self.body(x)

class Failing(Net):
    def forward(self, x):
        assert x.shape[-1] < 9, "too wide"

class HalfOut(Net):
    def forward(self, x):
        return self.body(x).half()

class Lazy(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.body = nn.Sequential(nn.LazyConv2d(3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x):
        return self.body(x)

class Nearest(nn.Module):
    def forward(self, x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

class Halves(Net):  # takes sides that are multiples of four only
    def forward(self, x):
        return self.body(nn.functional.pixel_shuffle(nn.functional.pixel_unshuffle(x, 4), 4))

class Sixteen(Net):
    def forward(self, x):
        assert x.shape[-1] % 16 == 0, "multiples of 16"
        return self.body(x)

class Cropping(Net):  # makes whole cells of four pixels, and drops the rest
    def forward(self, x):
        return self.body(x[..., : x.shape[-2] // 4 * 4, : x.shape[-1] // 4 * 4])

class Odd(Net):
    def forward(self, x):
        if self.training:
            raise KeyError("mask")
        return self.body(x)

class Several(Net):
    def forward(self, x):
        return [self.body(x)] if self.training else self.body(x)

class NoGradient(Net):
    @torch.no_grad()
    def forward(self, x):
        return self.body(x)

def plain():
    return Net(2).train()

def upscaled(upscale=4):
    return Net(upscale)

def half(scale):
    return Net(scale).half()

def broken():
    raise KeyError("weights")

def leaving():
    raise SystemExit(3)

def needing(scale, width):
    return Net(scale, width)

number = lambda: 3
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "my_net.py"
    path.write_text(CODE)
    (tmp_path / "beside.py").write_text(
        "from torch import nn\n\ndef conv(a, b):\n    return nn.Conv2d(a, b, 3, padding=1)\n"
    )
    return path


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
        ("{code}:leaving", 2, "no network can be made: SystemExit: 3"),
        ("{code}:needing", 2, "missing 1 required positional argument: 'width'"),
        *(
            (f"{{code}}:{kind.title()}s", 2, f"it returns {kind}; expected one image: name a call")
            for kind in ("list", "tuple", "dict")
        ),
        ("{code}:Conditioned", 2, "it does not take .*'sigma': name a callable that makes"),
        ("{code}:Failing", 2, "AssertionError: too wide"),
        ("{code}:half", 2, r"it does not take float32 .*, its weights are torch\.float16: "),
        ("{code}:HalfOut", 2, r"it makes torch\.float16 .*; expected torch\.float32 "),
        ("{code}:Writing", 2, "it writes into its input"),
        ("{code}:plain", 4, r"it makes .*\(1, 3, 128, 128\) .*float32 \(1, 3, 256, 256\) for x4"),
        *(
            (f"{{code}}:Net channels={n}", 2, "does not take .* makes a network of RGB images$")
            for n in (1, 4)  # gray, alpha
        ),
    ],
)
def test_what_is_no_network_is_told(code, name, scale, message):
    place, *options = name.format(code=code).split()
    with pytest.raises(ValueError, match=message):
        build_own(place, scale, parse_options(options))


@pytest.mark.parametrize("name", ["Net", "Nearest", "Lazy", "Halves", "Cropping"])
def test_images_of_any_size_are_restored(code, name):
    """Though a network fails on most of them, or has no weights."""
    torch.manual_seed(0)
    model = build_own(f"{code}:{name}", 2)
    image = np.random.default_rng(0).integers(0, 256, (21, 27, 3), dtype=np.uint8)
    seen = []
    model.register_forward_pre_hook(lambda model, args: seen.append(args[0].shape))
    for tile in (None, 16):
        restored = restore(model, image, tile)
        assert restored.shape == (42, 54, 3)
    if name in ("Halves", "Cropping"):
        assert (1, 3, 24, 28) in seen and (1, 3, 24, 32) not in seen, "the least padding will do"
        whole = restore(model, np.pad(image, ((0, 3), (0, 1), (0, 0)), mode="edge"))
        np.testing.assert_array_equal(restore(model, image), whole[:42, :54])


def test_an_image_that_cannot_be_restored_is_told(code):
    image = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(RefusedError, match=r"image of 20x20 pixels: AssertionError: too wide$"):
        restore(_module(str(code)).Failing(2), image)  # which was not tried before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Odd", "it does not take float32 (1, 3, 8, 8) in training: KeyError: 'mask': choose"),
        ("Several", "it returns list in training; expected one image"),
        ("NoGradient", "its output has no gradient; expected weights to be trained"),
        ("Nearest", "its output has no gradient; expected weights to be trained"),
        ("Sixteen", "AssertionError: multiples of 16: choose another --crop, or let the network"),
    ],
)
def test_a_network_that_cannot_be_trained_is_told_before(
    code, name, message, small, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(train_sr, "train", None)
    own = [f"{code}:{name}", "--method", "logits"]
    assert main(monkeypatch, train_sr, *small, "--backbone", *own) == 2
    assert f"error: {code}:{name}: " in (said := capsys.readouterr().err) and message in said
    if name == "Sixteen":
        torch.save(build_own(own[0], 2).state_dict(), tmp_path / "t.pth")
        own = ["--teacher", tmp_path / "t.pth", "--teacher-network", *own]
        assert main(monkeypatch, train_sr, *small, *own) == 2
        assert message in capsys.readouterr().err


def test_the_probe_of_training_leaves_no_trace(code):
    model = nn.Sequential(build_own(f"{code}:Net", 2), nn.BatchNorm2d(3), nn.Dropout(0.5))
    FACTS[model] = {"backbone": "it", "scale": "2"}
    before, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    check_crops(model, [8, 16], trained=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, model.state_dict().values(), state.values()))
    assert model.training


def below(word, state):
    return {f"{word}.{name}": tensor for name, tensor in state.items()}


def beside_others(prefix, state):
    """Below a prefix, with a loss, what thop leaves, and a history of other weights."""
    others = {"loss.weight": torch.zeros(1), "total_ops": torch.zeros(1)}
    history = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    return others | below("a.b.c.d.e", history) | below(prefix, state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state | {"total_ops": torch.zeros(1)},
        *(
            partial(beside_others, prefix)
            for prefix in ("module", "model", "net_g.module", "_orig_mod", "student.net.module")
        ),
        lambda state: {"params": below("wrong", state), "params_ema": state},
        lambda state: {"epoch": 3, "state_dict": below("module", state)},
        lambda state: {"state_dict": {"params_ema": below("module", state)}},
        lambda state: {"model": {"state_dict": below("net_g", state)}, "optimizer": {0: "a"}},
        lambda state: {"net_g": state, "net_d": {"weight": torch.zeros(1)}},
        lambda state: {"model_ema": below("_orig_mod.module", state), "epoch": 1},
        lambda state: {"state_dict": below("student", state) | below("dckd.history.model", state)},
        lambda state: {name: tensor.bfloat16().double() for name, tensor in state.items()},
    ],
)
def test_wrappers_and_prefixes_of_a_file_do_not_matter(code, tmp_path, wrap):
    source = build_own(f"{code}:Net", 2).bfloat16().float()
    torch.save(wrap(source.state_dict()), tmp_path / "file.pth")
    model = networks.open_network(str(tmp_path / "file.pth"), 2, [f"{code}:Net"])
    assert all(map(torch.equal, model.parameters(), source.parameters()))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("edsr_arch:EDSR", ["num_in_ch=3", "num_out_ch=3", "num_feat=8", "num_block=1"]),
        ("rrdbnet_arch:RRDBNet", ["num_in_ch=3", "num_out_ch=3", "num_feat=8", "num_block=1"]),
        ("srresnet_arch:MSRResNet", ["num_feat=8", "num_block=1"]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_basicsrs_networks_are_teachers(basicsr, name, options, tmp_path, images):
    """As its trainer saves them; RRDBNet, which takes even sides only, spandrel knows as well."""
    network = [f"basicsr.archs.{name}", *options]
    source = build_own(network[0], 2, parse_options(options)).eval()
    path = tmp_path / "net_g_latest.pth"
    torch.save({"params": below("wrong", {}), "params_ema": source.state_dict()}, path)
    lq, odd = images(1, 3, 16, 16), np.zeros((21, 27, 3), np.uint8)
    named = [network, []] if "rrdb" in name else [network]
    for each in named:
        teacher = networks.open_network(str(path), 2, each)
        expected = source(lq) if each else source(lq).clamp(0, 1)
        torch.testing.assert_close(teacher(lq), expected.detach())
        assert restore(teacher, odd).shape == (42, 54, 3)
    if len(named) == 1:
        with pytest.raises(ValueError, match=r"recognises no network .* name the code that makes"):
            networks.open_network(str(path), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (  # of another scale
            lambda state: {n: torch.zeros(27, *t.shape[1:]) for n, t in state.items()},
            r"body\.0\.bias: \(27,\) there, \(12,\) here",
        ),
        (lambda state: nn.Linear(1, 1).state_dict(), r"bias: \(1,\) there, none here"),
        (lambda state: dict(list(state.items())[:1]), r"body\.0\.bias: none there"),
        (  # of a deeper network
            lambda state: {**state, "body.2.weight": torch.zeros(1)},
            r"body\.2\.weight: \(1,\) there, none here",
        ),
        (
            lambda state: {f"{k}.{n}": t for n, t in state.items() for k in ("net", "ema")},
            r"ema\.\* and net\.\*, both of which fit; expected a file with one of them",
        ),
    ],
)
def test_other_weights_are_told_by_their_first_difference(code, change, message):
    model = build_own(f"{code}:Net", 2)
    with pytest.raises(ValueError, match=rf"file\.pth holds .*{message}"):
        fill(model, change(model.state_dict()), "file.pth", "it")


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
    assert "own  " in capsys.readouterr().out
    assert main(monkeypatch, evaluate, *line, "--backbone", network, "channels=1") == 2
    assert "it does not take float32 (1, 3, 64, 64)" in capsys.readouterr().err


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
