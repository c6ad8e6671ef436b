"""README's code and commands are what users copy: they must be true."""

import re
from pathlib import Path

import torch
from conftest import Student

from dckd_losses import DCKDLoss

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
YOUR_TRAINER = README.split("## Your trainer\n")[1].split("\n## ")[0]


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_python_blocks_run(images):
    student = Student()
    student_out = images(1, 3, 32, 32).requires_grad_()
    names = {
        "student": student,
        "dckd": DCKDLoss(student, "compact"),
        "student_out": student_out,
        "teacher_out": images(1, 3, 32, 32),
        "lq": images(1, 3, 16, 16),
        "pixel_loss": student_out.mean(),
        "teacher": torch.nn.Upsample(scale_factor=2),
        "optimizer": torch.optim.Adam(student.parameters()),
        "device": "cpu",
        "torch": torch,
        "loader": [(images(1, 3, 16, 16), images(1, 3, 32, 32)) for _ in range(2)],
        "step": 0,
    }
    found = blocks("python", README.replace(YOUR_TRAINER, ""))  # whose blocks have their own tests
    assert found
    for block in found:
        scope = dict(names)
        exec(compile(block.replace("vqgan-f16-1024", "compact"), "README.md", "exec"), scope)


def test_every_public_name_is_in_the_readme():
    import dckd_losses

    for name in dckd_losses.__all__:
        assert name in README, name


def test_ci_runs_the_readmes_test_command():
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    tests = [line for line in commands if line.endswith("python -m pytest")]
    assert len(tests) == 1
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "grep -m1 'python -m pytest$' README.md" in ci


def test_commands_name_files_that_exist():
    for path in re.findall(r"\b(?:examples|benchmarks|tests)/[\w/]+\.py\b", README):
        assert (ROOT / path).exists(), path
