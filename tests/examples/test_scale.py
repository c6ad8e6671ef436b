"""What a step computes does not depend on how it is computed: processes, parts, memory."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from PIL import Image as Pillow
from restoration import networks
from restoration.data.crops import RandomCrops
from restoration.data.datasets import Pair
from restoration.recipe import Recipe
from restoration.training import loop
from restoration.training.gradient_checkpointing import recompute_blocks
from restoration.training.loop import Run
from torch import Tensor, nn

from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
STEPS = 51  # the history moves after 50


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for seed in range(2):
        small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Pillow.fromarray(small).resize((48, 48), Pillow.Resampling.BICUBIC).save(
            folder / f"{seed}.png"
        )
    return folder


@pytest.fixture(scope="module")
def states(
    photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[dict[str, Any]]]:
    """Runs train_sr; what each of its processes ends with."""
    folder = tmp_path_factory.mktemp("states")
    script = folder / "both.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(ROOT / 'examples')!r})\n"
        "import torch, train_sr\n"
        "from restoration import task\n"
        "train = task.train\n"
        "def both(job, *args, **kwargs):\n"
        "    train(job, *args, **kwargs)\n"
        "    state = {'student': job.student.state_dict(), 'dckd': job.dckd.state_dict()}\n"
        f"    torch.save(state, os.path.join({str(folder)!r}, os.environ.get('RANK', '0')))\n"
        "task.train = both\n"
        "sys.exit(train_sr.main())\n",
        encoding="utf-8",
    )

    def run(processes: int, *options: object) -> list[dict[str, Any]]:
        launcher = LAUNCH if processes == 2 else [sys.executable]
        line = [*launcher, str(script), *map(str, options), "--data", str(photographs)]
        line += ["--val", str(photographs), "--crop", "8", "--iterations", str(STEPS)]
        done = subprocess.run(
            [*line, "--output", str(folder / "run")],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        return [torch.load(folder / str(rank)) for rank in range(processes)]

    return run


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("method", ["dmm", "dckd"])
def test_two_processes_are_one_of_twice_the_batch(
    method: str, states: Callable[..., list[dict[str, Any]]]
) -> None:
    """DCR's ratio, its negatives and a balance are each process's own: without them they agree."""
    losses = ["--method", method, "--balance", 0]
    first, second = states(2, *losses, "--batch-size", 1)
    (alone,) = states(1, *losses, "--batch-size", 2)
    fresh = networks.build("tiny", 2).state_dict()
    assert first["dckd"]["history.iteration"] == STEPS
    for part in ("student", "dckd"):  # all ranks hold the same, the history's weights included
        assert_close(first[part], second[part], 0)
    assert not torch.equal(first["dckd"]["history.model.tail.weight"], fresh["tail.weight"])
    apart = max((first["student"][name] - alone["student"][name]).abs().max() for name in fresh)
    if method == "dmm":
        assert_close(first["student"], alone["student"], 1e-4)
        assert_close(first["dckd"], alone["dckd"], 1e-4)
    else:
        assert apart > 1e-4


def test_a_rank_that_dies_ends_the_run(photographs: Path, tmp_path: Path) -> None:
    line = [*LAUNCH, "examples/train_sr.py", "--method", "logits", "--data", str(photographs)]
    line += ["--val", str(photographs), "--crop", "8", "--batch-size", "1"]
    line += ["--iterations", "100000", "--output", str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        line, cwd=ROOT, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True
    ) as launcher:
        try:
            assert launcher.stdout is not None
            while "output" not in launcher.stdout.readline():  # the last line before the training
                assert launcher.poll() is None
            time.sleep(1)
            workers = sorted(psutil.Process(launcher.pid).children(), key=lambda p: p.pid)
            workers[-1].kill()
            launcher.communicate(timeout=60)
        finally:
            launcher.kill()
    assert launcher.returncode != 0
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert not (tmp_path / "student.safetensors").exists()


class Toy(nn.Module):
    """Levels and codes of an encoder, for nothing."""

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        levels = tuple(nn.functional.avg_pool2d(images, size) for size in (1, 2, 4, 8, 16))
        return levels, 10 * levels[2]


def trained(
    folder: Path,
    *,
    clip: float | None = None,
    parts: int = 1,
    accelerator: Accelerator | None = None,
    **setup: Any,
) -> nn.Module:
    """The student of a short run in this process."""
    rng = np.random.default_rng(0)
    hq = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
    recipe = Recipe(iterations=4, batch_size=4, crop=8, clip=clip)
    crops = RandomCrops.of(recipe, [Pair("a", hq[::2, ::2], hq)], scale=2, seed=0)
    torch.manual_seed(0)
    student, teacher = networks.build("tiny", 2), networks.build("tiny", 2)
    nn.init.normal_(teacher.tail.weight, std=0.01)
    negatives = NegativeGenerator(HistoryModel(student, interval=2))
    dckd = DCKDLoss(student, Toy(), negatives=negatives, dcr_weight=0, dmm_weight=0.1)
    if setup.pop("recompute", False):
        recompute_blocks(student)
    run = Run(folder, recipe, crops, student, teacher, dckd, **setup)
    devices = accelerator or Accelerator(cpu=True, gradient_accumulation_steps=parts)
    loop.train(run, devices, resume=False)
    assert run.dckd is not None
    assert run.dckd.history.iteration == 4
    return student


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_the_whole_batchs(
    tmp_path: Path, parts: int, clip: float | None
) -> None:
    whole, accumulated = (trained(tmp_path, clip=clip, parts=each) for each in (1, parts))
    assert_close(accumulated.state_dict(), whole.state_dict(), 1e-5)


def test_mixed_precision_trains_nearly_the_same_student_in_float32(
    tmp_path: Path, accelerator: Callable[..., Accelerator]
) -> None:
    mixed = trained(tmp_path, accelerator=accelerator(mixed_precision="bf16")).state_dict()
    usual = trained(tmp_path, accelerator=accelerator()).state_dict()
    assert {tensor.dtype for tensor in mixed.values()} == {torch.float32}
    assert not torch.equal(mixed["tail.weight"], usual["tail.weight"])
    assert_close(mixed, usual, 1e-2)


def test_workers_that_read_ahead_change_nothing(tmp_path: Path) -> None:
    assert_close(trained(tmp_path, workers=2).state_dict(), trained(tmp_path).state_dict(), 0)


def test_recomputed_blocks_train_the_same_student(tmp_path: Path) -> None:
    again, kept = trained(tmp_path, recompute=True), trained(tmp_path)
    assert_close(again.state_dict(), kept.state_dict(), 0)


def saved_bytes(model: nn.Module, image: Tensor) -> tuple[int, Tensor]:
    """What a model keeps for backward, and its first gradient."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = model(image)
    total = kept
    output.square().mean().backward()
    first = next(p for p in model.parameters() if p.grad is not None)
    return total, first.grad.clone()


@pytest.mark.usefixtures("paper_networks")
@pytest.mark.parametrize(
    ("name", "scale"),
    [("swinir-student", 2), ("rcan-student", 2), ("nafnet-student", 1), ("restormer-student", 1)],
)
def test_recomputation_saves_memory_in_each_network(name: str, scale: int) -> None:
    torch.manual_seed(0)
    model = networks.build(name, scale).train()
    image = torch.rand(1, 3, 16, 16)
    usual, gradient = saved_bytes(model, image)
    model.zero_grad()
    recompute_blocks(model)
    less, again = saved_bytes(model, image)
    assert less < usual / 3
    torch.testing.assert_close(again, gradient, rtol=1e-5, atol=1e-9)


def test_networks_without_known_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="got Linear; expected blocks NAFBlock"):
        recompute_blocks(nn.Linear(1, 1))
