"""The paper's and the release's numbers, written down a second time."""

import importlib

import pytest

from dckd_losses import DCKDLoss, DCRLoss, DMMLoss, HistoryModel


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        ("dcr", "LEVEL_WEIGHTS", (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)),
        ("dcr", "EPS", 1e-7),
        ("history", "DECAY", 0.1),
        ("history", "INTERVAL", 1000),
        ("history", "INTERVAL_GROWTH", 1000),
        ("history", "GROWTH_EVERY", 100_000),
        ("history", "MAX_INTERVAL", 3000),
        ("negatives", "NUM_NEGATIVES", 5),
        ("dckd", "DCR_WEIGHT", 0.1),
        ("checks", "MIN_SIZE", 16),
        ("checks", "VALUE_RANGE", (-0.5, 1.5)),
        ("network", "LEVELS", 5),
    ],
)
def test_constants(module, name, value):
    assert getattr(importlib.import_module(f"dckd_losses.{module}"), name) == value


def test_defaults_are_the_constants(student, encoder):
    from dckd_losses.dckd import DMM_WEIGHT

    dcr, dmm = DCRLoss(encoder), DMMLoss(encoder)
    assert (dcr.level_weights, dcr.eps) == ((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), 1e-7)
    assert HistoryModel(student).decay == 0.1
    assert (dmm.temperature, dmm.form) == (1.0, "cross_entropy")
    dckd = DCKDLoss(student, encoder)
    assert (dckd.dcr_weight, dckd.dmm_weight) == (0.1, DMM_WEIGHT)
    assert dckd.dmm.form == "cross_entropy"
    assert dckd.negatives.num_negatives == 5 and not dckd.negatives.include_clean
    assert type(dckd.negatives.degradation).__name__ == "RandomNoise"
