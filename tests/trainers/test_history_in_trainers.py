"""Eq. 6 inside each trainer: history is where its closed form says, counted in real steps."""

import importlib

import accelerate_loop
import common
import lightning_module
import oracle
import plain_loop
import pytest
import registry_trainer
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
STEPS, SKIPPED = 6, 3  # of the accumulating trainers, counted from 1
INTERVAL = 2
DECAY = 0.1


class Spoiled(Dataset):
    """Crops of which one is an input that no gradient survives."""

    def __init__(self, crops, bad):
        self.crops, self.bad = crops, bad

    def __len__(self):
        return len(self.crops)

    def __getitem__(self, index):
        lq, gt = self.crops[index]
        return (lq * torch.nan if index == self.bad else lq), gt


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(common, "HISTORY_INTERVAL", INTERVAL)


@pytest.fixture
def skipping(monkeypatch):
    """The second batch of step `SKIPPED` overflows; a GradScaler skips that step."""
    made = common.batches
    batch = (SKIPPED - 1) * 2 + 1

    def batches(first, last):
        crops = made(first, last).dataset
        return DataLoader(Spoiled(crops, batch * common.BATCH_SIZE), common.BATCH_SIZE)

    monkeypatch.setattr(common, "batches", batches)


@pytest.fixture
def weights():
    """The student's after each real step of any optimizer."""
    seen = []

    def record(optimizer, args, kwargs):
        seen.append(flat(p for group in optimizer.param_groups for p in group["params"]))

    handle = register_optimizer_step_post_hook(record)
    yield seen
    handle.remove()


def flat(parameters):
    return torch.cat([p.detach().flatten().double() for p in parameters])


def assert_closed_form(dckd, start, sources, steps):
    """History after so many real steps, each of which left a source."""
    due = oracle.due_steps(steps, INTERVAL, 1000, 100_000, 3000)
    assert len(due) > 1
    expected = oracle.history(start.tolist(), [sources[step - 1].tolist() for step in due], DECAY)
    seen = flat(dckd.history.model.parameters())
    assert dckd.history.iteration == len(sources) == steps
    assert seen.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert not torch.allclose(seen, start, atol=1e-4), "history never moved"


def start():
    return flat(common.student().parameters())


def test_plain_loop(weights, skipping, tmp_path):
    dckd = plain_loop.train(STEPS, tmp_path)["dckd"]
    average = [weights[0]]  # which is the source here
    for now in weights[1:]:
        average.append(0.99 * average[-1] + 0.01 * now)
    assert_closed_form(dckd, start(), average, STEPS - 1)


def test_lightning(weights, skipping, tmp_path):
    module = lightning_module.Distillation()
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))
    lightning_module.EPOCH, whole = STEPS, lightning_module.EPOCH
    try:
        lightning_module.train(module, STEPS, tmp_path, plugins=[half], accelerator="cpu")
    finally:
        lightning_module.EPOCH = whole
    assert_closed_form(module.dckd, start(), weights, STEPS - 1)


def test_accelerate(weights, skipping, tmp_path, accelerator):
    made = accelerator(gradient_accumulation_steps=2)
    made.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)  # as float16 on a GPU has
    dckd = accelerate_loop.train(made, STEPS, tmp_path)
    assert_closed_form(dckd, start(), weights, STEPS - 1)


def test_registry_trainer(weights, tmp_path):
    trainer = registry_trainer.train(STEPS, tmp_path)
    assert_closed_form(trainer.losses["l_g_dckd"], start(), weights, STEPS)


def test_basicsr(basicsr, weights, tmp_path):
    """Its model, fed by hand, saved and resumed: BasicSR's own resume needs a GPU."""
    basicsr_model = importlib.import_module("basicsr_model")
    model = basicsr_model.DCKDModel(options(tmp_path))
    before = flat(model.net_g.parameters())
    for number, (lq, gt) in enumerate(common.batches(0, 4), 1):
        model.feed_data({"lq": lq, "gt": gt})
        model.optimize_parameters(number)
    assert_closed_form(model.dckd, before, weights, 4)
    model.save(0, 4)
    other = basicsr_model.DCKDModel(options(tmp_path))
    state = torch.load(tmp_path / "4.state", weights_only=False)  # BasicSR's, with a Counter
    other.resume_training(state)
    old, new = model.dckd.state_dict(), other.dckd.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)


def options(folder):
    """What BasicSR makes of the YAML file."""
    import yaml

    path = common.EXAMPLES / "integrations" / "basicsr_model.yml"
    text = path.read_text(encoding="utf-8").replace("!!float ", "")
    read = yaml.safe_load(text.replace("1e-3", "0.001"))
    read["train"]["history_interval"] = INTERVAL
    read["path"] |= {"models": str(folder), "training_states": str(folder)}
    return read | {"is_train": True, "dist": False, "rank": 0}
