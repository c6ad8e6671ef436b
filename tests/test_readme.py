"""README's code and commands are what users copy: they must be true."""

import re
from pathlib import Path

import torch
from conftest import Student

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run(images):
    student = Student()
    names = {
        "student": student,
        "teacher": torch.nn.Upsample(scale_factor=2),
        "optimizer": torch.optim.Adam(student.parameters()),
        "device": "cpu",
        "torch": torch,
        "loader": [(images(1, 3, 16, 16), images(1, 3, 32, 32)) for _ in range(2)],
    }
    found = blocks("python")
    assert found
    for block in found:
        exec(compile(block, "README.md", "exec"), dict(names))


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


def test_files_that_are_named_exist():
    paths = re.findall(r"\b(?:examples|benchmarks|tests|dckd_losses)/[\w/]+\.\w+\b", README)
    trainers = README.split("## Your trainer\n")[1].split("\n## ")[0]
    paths += [f"examples/integrations/{name}" for name in re.findall(r"`(\w+\.py)`", trainers)]
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).is_file(), path


def test_links_are_absolute_or_pictures():
    for picture, target in re.findall(r"(!?)\[[^]]*\]\(([^)]+)\)", README):
        assert target.startswith(("https://", "#")) or picture, target
