"""What a cosine says: a term that is the error itself points along it, noise averages out."""

import json

import pytest
import torch
from torch import nn

from benchmarks import directions


@pytest.fixture
def student():
    torch.manual_seed(0)
    return nn.Conv2d(3, 3, 3, padding=1)


def batches():
    generator = torch.Generator().manual_seed(1)
    while True:
        lq = torch.rand(2, 3, 16, 16, generator=generator)
        yield lq, 0.5 * lq.roll(1, 3)


def test_the_mean_of_noisy_gradients_finds_the_direction_that_one_does_not(student):
    def terms(out, lq, target):
        noise = torch.randn(out.shape, generator=generator)
        return {"error": (out - target).square().mean(), "noise": (out * noise).mean()}

    generator = torch.Generator().manual_seed(2)
    found = directions._gradients(student, batches(), 16, terms)
    assert {rows.shape for rows in found.values()} == {(16, 84)}
    truth = directions._gradients(student, batches(), 16, terms, unit=False)["error"].mean(0)
    assert directions._cosine(found["error"].mean(0), truth) > 0.99
    alone = [directions._cosine(row, truth) for row in found["noise"]]
    assert min(alone) < 0 < max(alone)
    mixed = found["noise"] + 0.2 * found["error"]
    assert directions._cosine(mixed.mean(0), truth) > directions._cosine(mixed[0], truth)


@pytest.mark.slow
def test_the_command_has_a_row_for_every_term(tmp_path, monkeypatch):
    teacher = "examples/assets/sr_x2_teacher.safetensors"
    command = f"directions --budget smoke --teacher {teacher} --student tiny --steps 1 2"
    path = tmp_path / "directions.json"
    monkeypatch.setattr("sys.argv", [*command.split(), "--batches", "4", "--json", str(path)])
    monkeypatch.setattr(directions, "GROUP", 2)
    monkeypatch.setattr(directions, "SMALL", directions.SMALL.shortened(2))
    directions.main()
    found = json.loads(path.read_text())
    terms = {row["term"] for row in found["rows"]}
    assert {"L1 to teacher", "compact: DCR, level 5", "compact: DMM"} <= terms
    assert len(found["rows"]) == 2 * len(terms)
    assert all(-1 <= row["cosine_all"] <= 1 for row in found["rows"])
