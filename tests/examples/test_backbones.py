"""Networks by name, the small ones themselves, and the files they are kept in."""

import subprocess
import sys
from pathlib import Path

import pytest
import restoration
import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from restoration import networks
from restoration.networks import build, load, multiply_adds, save
from restoration.networks.small import ResidualSR
from safetensors import safe_open
from safetensors.torch import save_file


def filled(channels=4, blocks=1, scale=2):
    """A network whose tail is not zero, as after training."""
    torch.manual_seed(0)
    model = ResidualSR(channels, blocks, scale)
    torch.nn.init.normal_(model.tail.weight, std=0.1)
    return model


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_untrained_is_bicubic_and_trains(scale):
    model = build("tiny", scale)
    lq = torch.rand(2, 3, 5, 7)
    bicubic = F.interpolate(lq, scale_factor=scale, mode="bicubic", align_corners=False)
    assert torch.equal(model(lq), bicubic)
    model(lq).square().mean().backward()
    assert model.tail.weight.grad is not None
    assert model.tail.weight.grad.abs().sum() > 0


def test_each_output_pixel_sees_its_own_place():
    """A network of 4 convolutions sees 4 pixels to each side, and bicubic 2: not the far end."""
    model = filled().eval()
    model(torch.rand(1, 3, 6, 6)).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    lq = torch.rand(1, 3, 1, 24)
    moved = lq.clone()
    moved[..., 0] = 1 - moved[..., 0]
    change = (model(moved) - model(lq)).detach().abs().amax(dim=(0, 1, 2))
    assert change[:2].min() > 1e-3
    assert change[10:].max() == 0


@pytest.mark.parametrize(("name", "parameters"), [("tiny", 9_492), ("small", 152_332)])
def test_sizes(name, parameters):
    model = build(name, 2)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert (model.backbone, model.scale, build(name, 1).backbone) == (name, 2, name)
    # Every weight, and no bias, multiplies once at each LR pixel.
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 4)
    assert multiply_adds(model, 1, 1) == weights
    assert multiply_adds(model, 5, 8) == 40 * weights


def test_bad_arguments():
    with pytest.raises(ValueError, match="'huge'; expected one of tiny, small"):
        build("huge", 2)
    with pytest.raises(ValueError, match="channels=0, blocks=1, scale=2; expected 1 or more"):
        ResidualSR(0, 1, 2)


@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    [("swinir-student", 1, "2 or 3 or 4"), ("rcan-teacher", 8, "2 or 3 or 4")]
    + [(name, 2, "1") for name in ("nafnet-student", "restormer-teacher")],
)
def test_scales_that_a_network_is_not_for(name, scale, expected):
    with pytest.raises(ValueError, match=f"got scale {scale} for {name}; expected {expected}$"):
        build(name, scale)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sr", "deblur", "derain"])
def test_the_default_runs_need_neither_spandrel_nor_torchvision(task, tmp_path):
    """They are slow to import, and torchvision is often missing beside a CPU build of torch."""
    code = (
        "import runpy, sys; "
        "sys.modules |= dict.fromkeys(['spandrel', 'spandrel_extra_arches', 'torchvision']); "
        "del sys.argv[0]; sys.path.insert(0, '.'); runpy.run_path(sys.argv[0], run_name='__main__')"
    )

    def run(script, *options):
        return subprocess.run(
            [sys.executable, "-c", code, script, *map(str, options)],
            cwd=Path(restoration.__file__).parents[1],
            capture_output=True,
            text=True,
        )

    done = run(f"train_{task}.py", "--iterations", 1, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    if task == "sr":
        Pillow.effect_noise((32, 32), 50).save(tmp_path / "a.png")
        line = ["evaluate.py", "--scale", 2, "--data", tmp_path, "--model"]
        done = run(*line, tmp_path / "student.safetensors")
        assert done.returncode == 0, done.stderr
        torch.save(filled().state_dict(), tmp_path / "other.pth")
        done = run(*line, tmp_path / "other.pth")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "pip install spandrel" in done.stderr


@pytest.mark.parametrize("error", [ModuleNotFoundError, RuntimeError, OSError])
def test_without_spandrel_the_error_says_what_to_install(monkeypatch, error):
    class Broken:
        """What torch and torchvision of different builds do: raise anything."""

        def find_spec(self, name, *_):
            if name.startswith("spandrel"):
                raise error("operator torchvision::nms does not exist")

    for name in [name for name in sys.modules if name.startswith("spandrel")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "restoration.networks.paper", raising=False)
    monkeypatch.delattr(networks, "paper", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(RuntimeError, match=r"rcan-student .*nms does not .*pip install spandrel "):
        build("rcan-student", 2)
    with pytest.raises(RuntimeError, match="pip install"):
        networks.open_network("swinir-x2", 2, ["swinir-teacher"])


@pytest.mark.parametrize("name", ["small", "swinir-light"])
def test_round_trip(name, request, tmp_path):
    if name == "small":
        model = filled(channels=5, blocks=2, scale=3)
        facts = {"backbone": "custom", "channels": "5", "blocks": "2"}
    else:
        request.getfixturevalue("paper_networks")
        model, facts = build(name, 3), {"backbone": name}
    path = tmp_path / "new" / "net.safetensors"
    save(model, path, seed=3, arm="logits")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata.pop("tensors_sha256")
    assert metadata == {**facts, "scale": "3", "seed": "3", "arm": "logits"}
    loaded, lq = load(path), torch.rand(1, 3, 8, 8)
    assert (loaded.backbone, loaded.scale, loaded.training) == (facts["backbone"], 3, False)
    assert torch.equal(loaded(lq), model.eval()(lq))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: None, "no such file"),
        *((lambda data, kept=kept: data[:kept], ".*cut short") for kept in (0, 6, 100, -1)),
        (lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], ".*sha256 of its tensors is"),
        (lambda data: b"\x80\x02" + data, ".*not such weights"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, change, message):
    path = tmp_path / "net.safetensors"
    save(filled(), path)
    data = change(path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(RuntimeError, match=rf"net\.safetensors[: ].*{message}"):
        load(path)
    with pytest.raises(RuntimeError, match="is a folder"):
        load(tmp_path)
    torch.save(filled().state_dict(), tmp_path / "net.pth")
    with pytest.raises(RuntimeError, match=r"net\.pth .*not such weights"):
        load(tmp_path / "net.pth")


SMALL = {"channels": "4", "blocks": "1", "scale": "2"}
LIGHT = {"backbone": "swinir-light", "scale": "3"}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "got metadata .*channels, bloc"),
        ({"channels": "4", "blocks": "1"}, "got metadata .*channels, bloc"),
        (SMALL, "got no tensors_sha256"),  # as where its name was damaged, and perhaps more
        ({**SMALL, "channels": "four"}, "got metadata"),
        ({**SMALL, "blocks": "-1"}, "got metadata"),
        ({**SMALL, "channels": "3"}, "tensors do not fit metadata"),
        ({**SMALL, "scale": "3"}, "tensors do not fit metadata"),
        # for which a network would take all memory
        *(({**SMALL, name: str(10**9)}, "got metadata") for name in SMALL),
        ({**LIGHT, "scale": "2"}, "tensors do not fit metadata"),
        ({**LIGHT, "scale": "1"}, "got metadata"),
        ({**LIGHT, "backbone": "swinir-student"}, "tensors do not fit metadata"),
        ({**LIGHT, "backbone": "swinir"}, "got metadata .*swinir-light"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(tmp_path, request, metadata, message):
    path, model = tmp_path / "net.safetensors", filled()
    if metadata and "backbone" in metadata:
        request.getfixturevalue("paper_networks")
        model = build("swinir-light", 3)
    save_file(model.state_dict(), path, metadata)
    with pytest.raises(RuntimeError, match=rf"net\.safetensors: {message}"):
        load(path)
