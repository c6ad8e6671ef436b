"""The installed package without the repository: README's first block, and the weights' commands."""

import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import dckd_losses
from dckd_losses.network import Architecture, VQGANNetwork


def first_block(readme: Path) -> None:
    """Run README's first Python block on a small student, a teacher and two batches."""
    match = re.search(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    assert match, f"{readme} has no Python block"
    student = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
    before = student[0].weight.clone()
    names = {
        "student": student,
        "teacher": nn.Upsample(scale_factor=2),
        "optimizer": torch.optim.Adam(student.parameters()),
        "device": "cpu",
        "torch": torch,
        "loader": [(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 32, 32)) for _ in range(2)],
    }
    exec(compile(match[1], str(readme), "exec"), names)
    assert not torch.equal(before, student[0].weight), "the student did not move"


def small_checkpoint(path: Path) -> None:
    """Write a small VQGAN with random weights as taming-transformers saves one."""
    architecture = Architecture(
        stem=32,
        channels=(32, 32, 32, 64, 64),
        blocks=1,
        attention=(False, False, False, False, True),
        z_channels=8,
        code_channels=6,
        codes=11,
    )
    state = VQGANNetwork(architecture).state_dict()
    decoder = {"decoder.conv_in.weight": torch.zeros(3, 8, 3, 3)}
    torch.save({"state_dict": {**state, **decoder}, "epoch": 1}, path)


def weights(*arguments: str) -> str:
    """The output of `python -m dckd_losses.weights`, which must succeed."""
    command = [sys.executable, "-m", "dckd_losses.weights", *arguments]
    print("+", *command[1:])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout)
    assert done.stdout.strip(), "it says nothing"
    return done.stdout


def main() -> None:
    """Fail where an installation from the wheel alone would."""
    assert "site-packages" in dckd_losses.__file__, dckd_losses.__file__
    first_block(Path(sys.argv[1]))
    small_checkpoint(Path("small.ckpt"))
    weights("convert", "small.ckpt", "small.safetensors")
    for command in ("verify", "info"):
        for given in ("small.safetensors", "compact"):
            weights(command, given)
    assert "compact" in weights("list")


if __name__ == "__main__":
    main()
