"""Which crops a step takes, however many processes and parts share them."""

from itertools import chain

import pytest
from restoration.data.crops import Batches, Crop, check_shares
from restoration.recipe import PAPER, Recipe, Stage

RECIPE = Recipe(5, batch_size=8, crop=16, stages=(Stage(2, 24, 4), Stage(4, 32, 4)))


def test_steps_take_one_crop_after_the_other() -> None:
    batches = list(Batches(RECIPE))
    assert [len(batch) for batch in batches] == [8, 8, 4, 4, 4]
    assert [crop.number for crop in chain(*batches)] == list(range(28))
    assert [{crop.size for crop in batch} for batch in batches] == [{16}, {16}, {24}, {24}, {32}]
    assert len(Batches(RECIPE)) == 5


@pytest.mark.parametrize(("processes", "parts"), [(2, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
def test_processes_and_parts_share_the_same_step(processes: int, parts: int) -> None:
    ranks = [
        list(Batches(RECIPE, processes=processes, rank=rank, parts=parts))
        for rank in range(processes)
    ]
    for step, whole in enumerate(Batches(RECIPE)):
        shares = [batch for rank in ranks for batch in rank[step * parts : (step + 1) * parts]]
        assert list(chain(*shares)) == whole
        assert len({len(share) for share in shares}) == 1
    assert len(Batches(RECIPE, processes=processes, parts=parts)) == 5 * parts


@pytest.mark.parametrize("first", range(6))
def test_a_resumed_run_goes_on_where_the_first_stopped(first: int) -> None:
    assert list(Batches(RECIPE, first=first)) == list(Batches(RECIPE))[first:]


def test_the_papers_switches_far_into_the_run() -> None:
    """Restormer's first switch: 92,000 steps of 64 crops, then 40 crops of 160."""
    batches = iter(Batches(PAPER["restormer-student"], first=91_999, processes=8, rank=7))
    before, after = next(batches), next(batches)
    assert before == [Crop(92_000 * 64 - 8 + i, 128) for i in range(8)]
    assert after == [Crop(92_000 * 64 + 35 + i, 160) for i in range(5)]


def test_shares_that_differ_are_refused() -> None:
    message = r"batch of 4 crops from step 2 on; .* multiple of 8, .* \(2\) times .* \(4\)"
    with pytest.raises(ValueError, match=message):
        check_shares(RECIPE, processes=2, parts=4)
    with pytest.raises(ValueError, match="multiple of 3"):
        Batches(RECIPE, processes=3)
