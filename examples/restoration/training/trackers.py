"""A run's log in TensorBoard or Weights & Biases, through Accelerate's trackers."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from ..data.images import Image
from .checkpoint import write_whole
from .console import RefusedError

TRACKERS = ("tensorboard", "wandb")
PROJECT = "dckd"  # of Weights & Biases, and TensorBoard's folder in the run's


def check(names: Sequence[str]) -> None:
    """Require trackers to be installed; ValueError names those that are not."""
    there = {str(each) for each in get_available_trackers()}
    if missing := [name for name in names if name not in there]:
        packages = " ".join(missing)
        raise ValueError(f"--log-with {packages}: not installed; run pip install {packages}")


def start(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Open the logs that the accelerator was made with; what they have after `step` is replaced.

    Raises:
        RefusedError: A tracker does not start, as Weights & Biases without an account.
    """
    names = [str(each) for each in accelerator.log_with]
    wandb: dict[str, Any] = {"dir": str(folder), "name": folder.name, "resume": "allow"}
    try:
        if "wandb" in names and accelerator.is_main_process:
            wandb["id"] = _wandb_id(folder / "wandb" / "run-id.txt", new=step == 0)
        settings = {"tensorboard": {"purge_step": step + 1}, "wandb": wandb}
        accelerator.init_trackers(PROJECT, init_kwargs=settings)
    except Exception as error:  # trackers raise many kinds
        said = " ".join(str(error).split())
        raise RefusedError(f"--log-with {' '.join(names)}: it does not start: {said}") from error


def _wandb_id(path: Path, new: bool) -> str:
    """The name by which Weights & Biases knows a run, also after it is resumed."""
    if new or not path.is_file():
        write_whole(path, secrets.token_hex(4).encode())
    return path.read_text(encoding="utf-8")


def log(accelerator: Accelerator, record: Mapping[str, Any], **more: float) -> None:
    """Log what was recorded of a step; of a list, such as the levels' distances, each number."""
    values: dict[str, float] = {}
    for name, value in {**record, **more}.items():
        if isinstance(value, list):
            values |= {f"{name}/{level}": each for level, each in enumerate(value, start=1)}
        elif name != "step":
            values[name] = value
    accelerator.log(values, step=int(record["step"]))


def log_image(accelerator: Accelerator, name: str, image: Image, step: int) -> None:
    """Log an image, uint8 RGB (H, W, 3)."""
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({name: image[None]}, step=step, **layout)
