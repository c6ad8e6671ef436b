"""Losses and gradients of the same images as ever, in every path and precision.

`python tests/test_golden.py` writes tests/golden.json anew. Whoever changes that file tells users
of it: a line under "Changed numbers" in CHANGELOG.md must name the file's digest.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dckd_losses import DCKDLoss, DCRLoss, DMMLoss, VQGANEncoder

FILE = Path(__file__).with_name("golden.json")
CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"
PATHS = {
    "plain": {"impl": "plain"},
    "stream": {"chunk": 3},
    "twopass": {"mode": "twopass", "chunk": 1},
}
# Digits that are kept; and what is allowed of a loss and of a gradient's norm, relative, and of the
# gradient along a direction, in units of a random gradient's of that norm. It is about five times
# what lies between the plain path and the others: other CPUs round in yet other places.
TOLERANCES = {
    "float64": (12, 1e-10, 1e-10, 1e-8),
    "float32": (7, 2e-6, 2e-6, 1e-4),
    "float16": (5, 1e-3, 3e-3, 0.05),
    "bfloat16": (5, 5e-3, 2e-2, 0.15),
}
PROJECTIONS = 6


def images(dtype):
    """The student's, the teacher's and two negatives' (4, 2, 3, 33, 34)."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 2, 3, 33, 34, generator=generator, dtype=torch.float64).to(dtype)


def losses(encoder, negatives):
    def dckd(balance):
        return DCKDLoss(
            nn.Identity(), encoder, dcr_weight=0.1, dmm_weight=1e-3, negatives=lambda lq: negatives,
            balance=balance,
        )  # fmt: skip

    dcr, dmm, released = DCRLoss(encoder), DMMLoss(encoder), DMMLoss(encoder, form="released")
    fixed, balanced = dckd(None), dckd(0.3)
    return {
        "dcr": (dcr, lambda s, t: dcr(s, t, negatives)),
        "dmm": (dmm, dmm),
        "dmm released": (released, released),
        "dckd": (fixed, lambda s, t: fixed(s, t, t)),
        "dckd balanced": (balanced, lambda s, t: balanced(s, t, t)),
    }


def measure(path, precision):
    """Of each loss: its value, its gradient's norm, and the gradient along some directions."""
    dtype = torch.float64 if precision == "float64" else torch.float32
    settings = PATHS[path] | {"precision": "float32" if precision == "float64" else precision}
    encoder = VQGANEncoder.from_pretrained("compact", **settings)
    student, teacher, *negatives = images(dtype)
    student.requires_grad_()
    found = {}
    for name, (loss, call) in losses(encoder, torch.stack(negatives)).items():
        loss.to(dtype)
        value = call(student, teacher)
        (gradient,) = torch.autograd.grad(3 * value, student)  # a factor other than one
        gradient = gradient.double().flatten()
        waves = torch.arange(1, PROJECTIONS + 1)[:, None] * torch.arange(len(gradient)).double()
        norm = gradient.norm()
        along = (2**0.5 * (1.7 * waves).cos() @ gradient) / norm
        found[name] = [value.item(), norm.item(), *along.tolist()]
    return found


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("path", PATHS)
def test_numbers_are_the_golden_ones(path, precision):
    golden = json.loads(FILE.read_text())
    _, value, norm, along = TOLERANCES[precision]
    for name, seen in measure(path, precision).items():
        expected = golden[f"{name}, {path}, {precision}"]
        assert seen[0] == pytest.approx(expected[0], rel=value), name
        assert seen[1] == pytest.approx(expected[1], rel=norm), name
        assert seen[2:] == pytest.approx(expected[2:], rel=0, abs=along), name


def digest():
    return hashlib.sha256(FILE.read_bytes()).hexdigest()[:12]


def test_changed_numbers_are_in_the_changelog():
    sections = CHANGELOG.read_text(encoding="utf-8").split("\n### Changed numbers\n")[1:]
    assert digest() in "".join(section.split("\n#")[0] for section in sections)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = [
        f'"{name}, {path}, {precision}": {[float(f"{x:.{kept}g}") for x in numbers]}'
        for precision, (kept, *_) in TOLERANCES.items()
        for path in PATHS
        for name, numbers in measure(path, precision).items()
    ]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
    print(f"wrote {FILE.name}; name it in CHANGELOG.md, Changed numbers: {digest()}")
