"""Random numbers as a pure function."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dckd_losses.negatives.draws import Draws


def draws(seed=0, rank=0, counter=0):
    return Draws(seed, rank, torch.tensor(counter))


@given(st.integers(0, 2**40), st.integers(0, 100), st.integers(0, 2**40))
@settings(deadline=None)
def test_any_other_argument_other_numbers(seed, rank, counter):
    mine = draws(seed, rank, counter).uniform(64)
    for other in ((seed + 1, rank, counter), (seed, rank + 1, counter), (seed, rank, counter + 1)):
        assert not torch.equal(mine, draws(*other).uniform(64))


def test_streams_of_one_call_differ():
    one = draws()
    assert not torch.equal(one.uniform(64), one.uniform(64))


def test_negative_and_large_seeds():
    assert not torch.equal(draws(-1).uniform(8), draws(1).uniform(8))
    draws(2**70).uniform(8)


def test_uniform_is_uniform():
    x = draws(5).uniform(200_000)
    assert x.dtype == torch.float32
    assert x.min() >= 0 and x.max() < 1
    assert torch.allclose(torch.histc(x, 20, 0, 1) / 1e4, torch.ones(20), atol=0.05)
    assert abs(torch.corrcoef(torch.stack([x[:-1], x[1:]]))[0, 1]) < 0.01


def test_neighbouring_calls_are_independent():
    x = torch.stack([draws(0, 0, c).uniform(50_000) for c in range(6)])
    off_diagonal = torch.corrcoef(x) - torch.eye(6)
    assert off_diagonal.abs().max() < 0.02


def test_normal_has_its_moments():
    x = draws(6).normal(200_000).double()
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    assert abs((x**4).mean() - 3) < 0.1
    assert x.isfinite().all()


def test_integers_and_ranges():
    x = draws(7).integers(5, 10_000)
    assert x.dtype == torch.int64
    assert torch.bincount(x, minlength=5).min() > 1800
    y = draws(8).uniform(1000, low=-2, high=3)
    assert -2 <= y.min() < -1.9 and 2.9 < y.max() < 3


COMPILER = any(map(shutil.which, ("g++", "clang++", "c++")))
NO_COMPILER = pytest.mark.skipif(not COMPILER, reason="no C++ compiler is at hand")


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, NO_COMPILER])]
)
def test_compiles_to_the_same_bits(backend):
    def noise(counter):
        return Draws(3, 1, counter).uniform(257)

    compiled = torch.compile(noise, fullgraph=True, backend=backend)
    for counter in (0, 1, 2**33):
        assert torch.equal(compiled(torch.tensor(counter)), noise(torch.tensor(counter)))


def test_bits_are_those_of_splitmix64():
    """A resumed run must not meet other numbers after an update: these bits are fixed."""

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    def number(seed, rank, counter, stream, index):
        key = seed
        for part in (rank, counter, stream):
            key = mix((key + gamma) % 2**64) ^ part
        return (mix((mix(key) + index * gamma) % 2**64) >> 40) / 2**24

    gamma = 0x9E3779B97F4A7C15
    one = draws(3, 1, 9)
    for stream in (1, 2):
        assert one.uniform(11).tolist() == [number(3, 1, 9, stream, i) for i in range(1, 12)]


def test_a_number_depends_on_its_index_not_on_how_many_are_drawn():
    assert torch.equal(draws(1, 0, 2).uniform(5), draws(1, 0, 2).uniform(50)[:5])
