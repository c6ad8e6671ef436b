"""Blocks of the integrations' README are run, in the real package or on a stand-in of its model."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import CANNOT_IMPORT, Student
from test_integrations import options
from torch import nn

from dckd_losses import HistoryModel

pytestmark = pytest.mark.filterwarnings("ignore")
README = Path(__file__).parents[2] / "examples" / "integrations" / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
BATCHES = 4


@pytest.fixture(autouse=True)
def eager_history(monkeypatch, tmp_path):
    """It moves every step, not after the first thousand; blocks write where they are run."""
    monkeypatch.setattr(HistoryModel, "due", lambda self, step: True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scope(student, images):
    """The names that the blocks take for granted."""
    pairs = [(images(1, 3, 8, 8), images(1, 3, 16, 16)) for _ in range(BATCHES)]
    return {
        "torch": torch,
        "student": student,
        "teacher": nn.Upsample(scale_factor=2),
        "optimizer": torch.optim.Adam(student.parameters(), 1e-3),
        "device": "cpu",
        "loader": torch.utils.data.DataLoader(pairs, batch_size=None),
    }


def execute(holds, scope):
    """The one block that holds a text."""
    (block,) = [block for block in BLOCKS if holds in block]
    exec(compile(block, "README.md", "exec"), scope)
    return scope


def assert_trained(dckd, student, steps, start=None):
    """The history counted the steps and followed the student, which the loss had moved."""
    history = dckd.history
    assert history.iteration == steps and dckd.negatives.counter > 0
    for name, past in history.model.named_parameters():
        now = dict(student.named_parameters())[name]
        torch.testing.assert_close(past, now, atol=5e-3, rtol=0)
    torch.manual_seed(1)  # of the fixture `student`
    fresh = start or Student()
    pairs = zip(history.model.parameters(), fresh.parameters(), strict=True)
    assert not all(torch.equal(past, first) for past, first in pairs), "history never moved"


def test_every_block_is_here():
    marks = ("GradScaler", "import lightning", "accelerate import", "sr_model import SRModel")
    marks += ("ImageRestorationModel", "ModelPlain", "traiNNer", "neosr.models")
    assert len(BLOCKS) == len(marks)
    assert all(any(mark in block for block in BLOCKS) for mark in marks)


def test_every_block_that_runs_the_teacher_has_an_l1_to_it():
    """Plain distillation, beside which DCKD is measured."""
    blocks = [block for block in BLOCKS if "teacher(" in block or "teachers[0](" in block]
    assert len(blocks) == 6
    terms = (
        "student_out - teacher_out",
        "l_pix + l_kd + l_dckd",
        "self.pixel_loss(E, teacher_out)",
    )
    assert all(any(term in block for term in terms) for block in blocks)


def test_plain(scope, student):
    execute("GradScaler", scope)
    assert_trained(scope["dckd"], student, BATCHES // 2)
    saved = torch.load("checkpoint.pt", weights_only=True)
    assert saved["dckd"]["history.iteration"] == BATCHES // 2


def test_lightning(scope, student):
    pytest.importorskip("lightning", exc_type=CANNOT_IMPORT)
    execute("import lightning", scope)
    assert_trained(scope["module"].dckd, student, BATCHES // 2)


def test_accelerate(scope, student, accelerator):
    AcceleratorState._reset_state(reset_partial_state=True)  # as the fixture does afterwards
    execute("from accelerate", scope)
    assert_trained(scope["dckd"], student, BATCHES // 2)


def drive(model, loader, **arguments):
    """What a BasicSR's loop does with its model."""
    for number, (lq, gt) in enumerate(loader, 1):
        model.feed_data({"lq": lq, "gt": gt})
        model.optimize_parameters(number, **arguments)


def test_basicsr(basicsr, scope, tmp_path):
    made = execute("basicsr.models.sr_model", scope)
    model = made["DistilledSRModel"](options(tmp_path))
    start = [p.clone() for p in model.net_g.parameters()]
    drive(model, scope["loader"])
    past = [*model.dckd.history.model.parameters()]
    assert model.dckd.history.iteration == BATCHES
    assert not all(map(torch.equal, past, start)), "history never moved"
    assert set(model.log_dict) == {"l_pix", "l_kd", "l_dckd"}


class ForkModel:
    """What NAFNet's and Restormer's models have, of which the block makes use."""

    def __init__(self, student):
        self.device, self.net_g = "cpu", student
        self.init_training_settings()

    def init_training_settings(self):
        self.cri_pix = nn.L1Loss()
        self.optimizer_g = torch.optim.Adam([{"params": [*self.net_g.parameters()]}], 1e-3)

    def feed_data(self, data):
        self.lq, self.gt = data["lq"], data["gt"]

    def reduce_loss_dict(self, losses):
        return {name: loss.mean().item() for name, loss in losses.items()}


class KAIRModel:
    """KAIR's ModelPlain, as far as one step needs it."""

    def __init__(self, student):
        self.device, self.netG = "cpu", student
        self.init_train()

    def init_train(self):
        self.G_lossfn = nn.L1Loss()
        self.G_optimizer = torch.optim.Adam(self.netG.parameters(), 1e-3)

    def feed_data(self, data):
        self.L, self.H = data["lq"], data["gt"]

    def optimize_parameters(self, current_step):
        self.G_optimizer.zero_grad()
        self.E = self.netG(self.L)
        loss = 1.0 * self.G_lossfn(self.E, self.H)
        loss.backward()
        self.G_optimizer.step()


class ReduxModel(ForkModel):
    """traiNNer-redux's SRModel: any loss in a dictionary, called under autocast."""

    def init_training_settings(self):
        super().init_training_settings()
        self.losses = {}

    def optimize_parameters(self, current_iter):
        with torch.inference_mode():
            target = nn.functional.interpolate(self.lq, scale_factor=2)
        with torch.autocast("cpu", torch.bfloat16):
            self.output = self.net_g(self.lq)
            total = torch.tensor(0.0)
            for loss in self.losses.values():
                total += loss(self.output, target) * loss.loss_weight
        total.backward()
        self.optimizer_g.step()
        self.optimizer_g.zero_grad()


class NeoModel(ForkModel):
    """neosr's image: losses in attributes, which are called if they are there."""

    cri_dists = None

    def optimize_parameters(self, current_iter):
        self.output = self.net_g(self.lq)
        total = torch.zeros(1)
        if self.cri_dists:
            total += self.cri_dists(self.output, self.gt)
        total.backward()
        self.optimizer_g.step()
        self.optimizer_g.zero_grad()


STAND_INS = [
    ("basicsr.models.image_restoration_model", "ImageRestorationModel", ForkModel),
    ("models.model_plain", "ModelPlain", KAIRModel),
    ("traiNNer.models.sr_model", "SRModel", ReduxModel),
    ("neosr.models.image", "image", NeoModel),
]


@pytest.mark.parametrize(("module", "name", "base"), STAND_INS, ids=lambda x: str(x))
def test_on_a_stand_in(scope, student, monkeypatch, module, name, base):
    parts = module.split(".")
    for number in range(1, len(parts)):
        package = ModuleType(".".join(parts[:number]))
        package.__path__ = []
        monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: base}))
    before = set(scope)
    execute(module, scope)
    (made,) = [scope[new] for new in set(scope) - before if issubclass_of(scope[new], base)]
    model = made(student)
    drive(model, scope["loader"])
    losses = [value for value in vars(model).values() if hasattr(value, "loss_weight")]
    losses += list(getattr(model, "losses", {}).values())
    assert_trained(losses[0], student, BATCHES)


def issubclass_of(value, base):
    return isinstance(value, type) and issubclass(value, base) and value is not base
