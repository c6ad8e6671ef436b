"""What a number was measured with: command, commit, device, versions."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


def command(module: str = "benchmarks.tables") -> str:
    """The command line, as it can be typed again."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def machine(device: torch.device) -> dict[str, Any]:
    """Commit, device, versions and threads."""
    cuda = device.type == "cuda"
    return {
        "commit": commit(),
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {_processor()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def commit() -> str:
    """The commit that runs, with `-dirty` where files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):  # not a clone
        return "unknown"
    return done.stdout.strip()


def _processor() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
