"""From an arm's settings, which are numbers and names, to its losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from benchmarks import baselines
from dckd_losses import HistoryModel, NegativeGenerator
from dckd_losses.dckd import DCR_WEIGHT, DMM_WEIGHT
from dckd_losses.dcr import LEVEL_WEIGHTS
from dckd_losses.negatives import NUM_NEGATIVES
from examples.restoration.recipes import Recipe

CONTRASTIVE = ("csd", "aecr", "mclir", "dckd", "dckd_star")  # they look through an encoder
DCKD = ("dckd", "dckd_star")
TRANSFORMING = {"dukd": "seed", "dckd_star": "consistency_seed"}  # and what seeds their transforms
DEFAULTS: Mapping[str, Any] = {  # of DCKD, in full, so that equal runs have equal settings
    "dcr_weight": DCR_WEIGHT,
    "dmm_weight": DMM_WEIGHT,
    "form": "cross_entropy",
    "level_weights": list(LEVEL_WEIGHTS),
    "balance": None,
    "num_negatives": NUM_NEGATIVES,
    "degradation": "noise",
}
GROWTH_EVERY = 100_000  # steps of the 250,000 that the paper has, or their share of a shorter run:
LENGTH = 250_000  # there the history's interval grows (released code) ...
GROWTHS = 3  # ... by its first value, up to so many times that
DUKD = {  # its released configurations, against an L1 to the ground truth of 1
    ("rcan-student", 2): {"probability": 0.0},
    ("rcan-student", 3): {"weight": 0.5, "logits_weight": 0.5, "zoom_out": True},
    ("rcan-student", 4): {"probability": 0.0},
    **{
        (network, scale): {"weight": 0.2, "logits_weight": 0.2}
        for network in ("swinir-student", "swinir-light")
        for scale in (2, 3, 4)
    },
}
FAKD_LAYERS = {  # RCAN's as its authors took them; SwinIR's, unpublished, the ends of the thirds
    "rcan-student": ["body.1", "body.5", "body.10"],
    "rcan-teacher": ["body.1", "body.5", "body.10"],
    "swinir-student": ["layers.0", "layers.2", "layers.3"],
    "swinir-teacher": ["layers.1", "layers.3", "layers.5"],
}


def meant_for(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of DCKD's settings that a method has, too: rivals that look through an encoder a pull.

    Args:
        method: Of `baselines.METHODS`.
        settings: As the command line says them.
    """
    if method in DCKD:
        return dict(settings)
    return {k: v for k, v in settings.items() if k == "balance" and method in CONTRASTIVE}


def settings_of(
    method: str, settings: Mapping[str, Any], recipe: Recipe, network: str, scale: int
) -> dict[str, Any]:
    """An arm's settings in full.

    Args:
        method: Of `baselines.METHODS`.
        settings: What is not as by default; a `balance` of 0 is none. Of DCKD those of
            `DEFAULTS`, `interval`, the steps between the history's first updates, and
            `interval_factor`, which multiplies them.
        recipe: By default it says the interval.
        network: The student.
        scale: Its.
    """
    if method not in DCKD:
        published = DUKD.get((network, scale), {}) if method == "dukd" else {}
        found = {**published, **settings}
        return {name: value for name, value in found.items() if name != "balance" or value}
    growth_every = max(1, round(GROWTH_EVERY * min(1, recipe.iterations / LENGTH)))
    schedule = {"interval": recipe.history_interval, "growth_every": growth_every}
    full = {**schedule, **DEFAULTS, **settings}
    full["balance"] = full["balance"] or None
    factor = full.pop("interval_factor", 1)
    full["interval"] = max(1, round(factor * full["interval"]))
    return full


def build(
    method: str,
    settings: Mapping[str, Any],
    student: nn.Module,
    teacher: nn.Module,
    encoder: str | None,
    seed: int,
) -> baselines.Arm:
    """The losses of one run.

    Args:
        method: Of `baselines.METHODS`.
        settings: What `settings_of` gave.
        student: The network to be trained.
        teacher: Its teacher.
        encoder: Of the contrastive methods, one for all; None for each method's own.
        seed: Of negatives.
    """
    known = dict(settings)
    if method in DCKD:
        known["level_weights"] = tuple(known["level_weights"])
        known["negatives"] = _negatives(known, student, seed)
    if method == "fakd":
        layers = [FAKD_LAYERS.get(str(getattr(net, "backbone", ""))) for net in (student, teacher)]
        known |= dict(zip(("student_layers", "teacher_layers"), layers, strict=True))
    if method in TRANSFORMING:
        known[TRANSFORMING[method]] = 2 * seed + 1
    return baselines.build(method, student, teacher, encoder, **known)


def _negatives(known: dict[str, Any], student: nn.Module, seed: int) -> NegativeGenerator:
    """History and negatives, whose settings are taken out."""
    interval = known.pop("interval")
    history = HistoryModel(
        student,
        interval=interval,
        interval_growth=interval,
        growth_every=known.pop("growth_every"),
        max_interval=GROWTHS * interval,
    )
    return NegativeGenerator(
        history,
        num_negatives=known.pop("num_negatives"),
        degradation=known.pop("degradation"),
        seed=2 * seed,  # even ones; those of the rivals' transforms are odd
    )
