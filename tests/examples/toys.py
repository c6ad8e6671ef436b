"""What tests of the examples share: a tiny run, images on disk, scripts within this process."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image as Pillow
from restoration import networks
from restoration.data.crops import RandomCrops
from restoration.data.datasets import Pair
from restoration.data.synthetic import matlab_bicubic
from restoration.recipe import Cosine, Recipe
from restoration.training.gradient_checkpointing import checkpoint_blocks
from restoration.training.loop import Run, train
from safetensors.torch import load_file
from torch import Tensor, nn

from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
RECIPE = Recipe(iterations=6, batch_size=2, crop=8, schedule=Cosine(end=1e-5, warm_up=2))


class ToyEncoder(nn.Module):
    """Five levels and three codes without a weight."""

    def forward(self, images):
        levels = tuple(F.avg_pool2d(images, size) for size in (1, 2, 4, 8, 16))
        return levels, 10 * levels[2]


class Toy:
    """A run with everything in it, always the same but for `changes` of `Run`'s settings."""

    def __init__(
        self,
        folder,
        recipe=RECIPE,
        *,
        accelerator=None,
        distils=True,
        dcr_weight=0.1,
        checkpoints_blocks=False,
        prepare=lambda student: None,
        **changes,
    ):
        hq = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        crops = RandomCrops.of(recipe, [Pair("a", hq[::2, ::2], hq)], scale=2, seed=0)
        torch.manual_seed(0)
        student, self.teacher = networks.build("tiny", 2), networks.build("tiny", 2)
        nn.init.normal_(self.teacher.tail.weight, std=0.01)
        prepare(student)
        if checkpoints_blocks:
            checkpoint_blocks(student)
        changes = {"settings": {"seed": 0}, **changes}
        devices = accelerator or Accelerator(cpu=True)
        self.run = Run(Path(folder), recipe, student, crops, devices, **changes)
        self.dckd = None
        if distils:
            negatives = NegativeGenerator(HistoryModel(student, interval=2))
            weights = {"dcr_weight": dcr_weight, "dmm_weight": 0.1, "balance": None}
            self.dckd = DCKDLoss(student, ToyEncoder(), negatives=negatives, **weights)
            self.dckd.attach(self.run.optimizer)

    def step(self, lq, hq):
        """As the scripts have it."""
        student_out = self.run.model(lq).float()
        with torch.no_grad(), self.run.accelerator.autocast():
            teacher_out = self.teacher(lq).float()
        terms = {"l1": F.l1_loss(student_out, hq), "kd": F.l1_loss(student_out, teacher_out)}
        loss = terms["l1"] + terms["kd"]
        if self.dckd is None:
            return loss, terms
        self.run.check(self.dckd, student_out, teacher_out, lq)
        return loss + self.dckd(student_out, teacher_out, lq), terms | self.dckd.last

    def trained(self, *, resume=False):
        train(self.run, self.step, dckd=self.dckd, resume=resume)
        return self

    def at_step(self, step, act):
        """Do something in the middle of a step, counted from 1."""

        def hook(module, args, output):
            if self.run.step + 1 == step and module.training:
                act()

        self.run.student.register_forward_hook(hook)
        return self


def assert_same(one, other):
    """Equality bit for bit of nested states."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance, msg=name)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path, height, width, seed):
    """A smooth image of four times that many pixels a side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(matlab_bicubic(noise(height, width, seed), 4)).save(path)
    return path


def write_pairs(root, lq, hq):
    """Two images, and the same with noise, in folders of these names."""
    for seed, name in enumerate(("a.png", "b.png")):
        image = np.asarray(Pillow.open(write(root / hq / name, 10, 12, seed)))
        noisy = np.clip(image + np.random.default_rng(seed).normal(0, 9, image.shape), 0, 255)
        (root / lq).mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(noisy.astype(np.uint8)).save(root / lq / name)
    return root


def options(**chosen):
    return [
        part for key, value in chosen.items() for part in (f"--{key.replace('_', '-')}", str(value))
    ]


def main(monkeypatch, script, *args):
    """A script within this process."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier run
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, args)])
    return script.main()


@pytest.fixture
def no_pictures(monkeypatch):
    """Drawing them takes most of a short run."""
    for name in ("curves", "side_by_side"):
        monkeypatch.setattr(f"restoration.results.figures.{name}", lambda *args: None)


def weights(folder):
    """The last student's weights, to the bit."""
    tensors = load_file(folder / "student.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.fixture(scope="session")
def sets(tmp_path_factory):
    """Small training and validation sets."""
    folder = tmp_path_factory.mktemp("sets")
    for seed in range(3):
        write(folder / "train" / f"{seed}.png", 10 + seed, 12, seed)
    write(folder / "val" / "a.png", 10, 11, 8)
    write(folder / "val" / "b.png", 11, 10, 9)
    return folder


@pytest.fixture
def small(sets, tmp_path):
    """Options of a run that takes a moment."""
    data = {"data": sets / "train", "val": sets / "val", "output": tmp_path}
    return options(iterations=3, batch_size=1, crop=8, **data)
