"""What several tests share: random encoders, small students, the examples' own modules."""

import copy
import os
import pickle

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small work gets several times slower with two

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dckd_losses import VQGANEncoder
from dckd_losses.encoder import as_encoder
from dckd_losses.network import Architecture, VQGANNetwork, build

# missing, made for another torch (as torchvision often is), or without a library of the system's
CANNOT_IMPORT = (ImportError, RuntimeError, OSError)

# `--hypothesis-profile thorough`, which CI adds for the laws, draws anew each time
for name, examples in (("quick", 12), ("thorough", 100)):
    settings.register_profile(
        name,
        deadline=None,
        derandomize=name == "quick",
        max_examples=examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
settings.load_profile("quick")


@pytest.fixture
def float32_is_exact() -> Iterator[None]:
    """No TF32 in CUDA's convolutions and products, which some tolerances leave no room for."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.fixture(scope="session")
def paper_networks() -> None:
    """Skips where spandrel, which has them, cannot be imported: often torchvision is in the way."""
    for package in ("spandrel", "spandrel_extra_arches"):
        pytest.importorskip(package, exc_type=CANNOT_IMPORT)


@pytest.fixture(scope="session")
def basicsr() -> None:
    """Skips where BasicSR cannot be imported: its opencv may miss the system's libGL."""
    pytest.importorskip("basicsr.models.sr_model", exc_type=CANNOT_IMPORT)


@pytest.fixture
def architecture() -> Architecture:
    """The smallest network that has everything: two widths, attention, a few codes."""
    return Architecture(
        stem=32,
        channels=(32, 32, 32, 64, 64),
        blocks=1,
        attention=(False, False, False, False, True),
        z_channels=8,
        code_channels=6,
        codes=11,
    )


@pytest.fixture
def tensors(architecture: Architecture) -> dict[str, Tensor]:
    """Random weights of that architecture, norms and biases included."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = VQGANNetwork(architecture)
        return {name: w + 0.05 * torch.randn_like(w) for name, w in network.state_dict().items()}


@pytest.fixture
def weights_file(tensors: dict[str, Tensor], tmp_path: Path) -> Path:
    """An encoder-only file with these weights."""
    path = tmp_path / "encoder.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture
def make_encoder(tensors: dict[str, Tensor]) -> Callable[..., VQGANEncoder]:
    """Makes an encoder of its own with these weights; takes `VQGANEncoder`'s settings."""

    def make(**settings: Any) -> VQGANEncoder:
        return VQGANEncoder(build({k: v.clone() for k, v in tensors.items()}), **settings)

    return make


@pytest.fixture
def encoder(make_encoder: Callable[..., VQGANEncoder]) -> VQGANEncoder:
    return make_encoder()


@pytest.fixture
def accelerator() -> Iterator[Callable[..., Any]]:
    """Makes an Accelerator on the CPU; its process-wide settings do not leak between tests."""
    pytest.importorskip("accelerate")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    def make(**settings: Any) -> Accelerator:
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=True, **settings)

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


class Student(nn.Module):
    """Doubles the size of an image; has a buffer that training moves."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, lq: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        out: Tensor = self.layers(lq)
        return out


@pytest.fixture
def student() -> Student:
    torch.manual_seed(1)
    return Student()


@pytest.fixture
def images() -> Callable[..., Tensor]:
    """Random images in [0, 1] of a shape; other numbers each time."""
    generator = torch.Generator().manual_seed(2)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return make


@pytest.fixture
def batch(images: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """student_out, teacher_out, lq."""
    return images(2, 3, 16, 20), images(2, 3, 16, 20), images(2, 3, 8, 10)


@pytest.fixture(
    params=[copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def clone(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Either way to copy an object."""
    return request.param


class NoNumberLeaves(TorchDispatchMode):
    """Fails where a value or a value-dependent shape would have to come from the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "masked_select", "_unique2"}, name
        return function(*args, **(kwargs or {}))


class Pyramid(nn.Module):
    """The least encoder of five levels."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        x = self.conv(x).tanh()
        return [F.avg_pool2d(x, 2**i) for i in range(5)], None


@pytest.fixture
def pyramid():
    return as_encoder(Pyramid()).double()


@pytest.fixture
def networks():
    """A student and a wider teacher, both trained a little away from bicubic interpolation."""
    from examples.restoration.networks.small import ResidualSR

    with torch.random.fork_rng():
        torch.manual_seed(4)
        pair = [ResidualSR(4, 3, 2), ResidualSR(6, 7, 2)]
        for network in pair:
            nn.init.normal_(network.tail.weight, std=0.01)
    return pair
