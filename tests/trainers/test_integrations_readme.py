"""Blocks of the integrations' README run, resume and are chosen as their trainer does these.

In the real package, or on a stand-in of what the trainer does around a model.
"""

import re
import sys
from functools import partial
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
ROW = re.compile(
    r"^\| (BasicSR|NAFNet|Restormer|neosr) \| `(\w+)` \| `([\w.]+)` \| (.*?) \|", re.MULTILINE
)


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


def execute(holds, scope, changes=()):
    """The one block that holds a text, with some texts replaced."""
    (block,) = [block for block in BLOCKS if holds in block]
    for old, new in changes:
        assert old in block
        block = block.replace(old, new)
    exec(compile(block, "README.md", "exec"), scope)
    return scope


def assert_trained(dckd, student, steps):
    """The history counted the steps and followed the student, which the loss had moved."""
    history = dckd.history
    assert history.iteration == steps
    for name, past in history.model.named_parameters():
        now = dict(student.named_parameters())[name]
        torch.testing.assert_close(past, now, atol=5e-3, rtol=0)
    torch.manual_seed(1)  # of the fixture `student`
    pairs = zip(history.model.parameters(), Student().parameters(), strict=True)
    assert not all(torch.equal(past, first) for past, first in pairs), "history never moved"


def test_every_block_is_here_and_stands_alone():
    marks = ("GradScaler", "import lightning", "accelerate import", "basicsr.models.sr_model")
    marks += ("DUKD", "ModelPlain", "traiNNer", "mmengine")
    assert len(BLOCKS) == len(marks)
    assert all(any(mark in block for block in BLOCKS) for mark in marks)
    for block in BLOCKS:
        assert ("torch." in block) == ("import torch\n" in block)
        assert "optimize_parameters" not in block, "what else a trainer does there would be lost"


def test_every_block_has_plain_distillation():
    """Beside which DCKD is measured; traiNNer-redux's target is the teacher's output already."""
    terms = ("student_out - teacher_out", "(output, teacher_out)", "(E, teacher_out)")
    blocks = [block for block in BLOCKS if "traiNNer" not in block]
    assert all(any(term in block for term in terms) for block in blocks)


def test_plain(scope, student):
    for steps in (BATCHES // 2, BATCHES):  # the second run goes on
        execute("GradScaler", scope)
        assert_trained(scope["dckd"], student, steps)
        scope["dckd"].detach()


def test_lightning(scope, student):
    pytest.importorskip("lightning", exc_type=CANNOT_IMPORT)
    execute("import lightning", scope)
    assert_trained(scope["module"].dckd, student, BATCHES // 2)


def test_accelerate(scope, accelerator):
    for steps in (BATCHES // 2, BATCHES):  # the second run goes on
        AcceleratorState._reset_state(reset_partial_state=True)  # as the fixture does afterwards
        scope["student"] = Student()
        scope["optimizer"] = torch.optim.Adam(scope["student"].parameters(), 1e-3)
        execute("from accelerate", scope)
        assert_trained(scope["dckd"], scope["student"], steps)


def provide(monkeypatch, name, **attributes):
    """A module of a trainer that is not installed."""
    parts = name.split(".")
    for number in range(1, len(parts)):
        package = ModuleType(".".join(parts[:number]))
        package.__path__ = []
        monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(**attributes))


class Fork:
    """What BasicSR's forks do around a model, as far as a block could spoil it."""

    def __init__(self, opt):
        self.opt, self.device, self.optimizers = opt, "cpu", []
        torch.manual_seed(1)
        self.net_g = Student()
        self.net_g.load_state_dict(opt.get("net_g", self.net_g.state_dict()))
        self.init_training_settings()

    def init_training_settings(self):
        self.cri_pix = nn.MSELoss()
        self.optimizer_g = torch.optim.Adam([{"params": [*self.net_g.parameters()]}], 1e-3)
        self.optimizers.append(self.optimizer_g)

    def feed_data(self, data):
        self.lq, self.gt = data["lq"], data["gt"]

    def optimize_parameters(self, step):
        for group in [group for optimizer in self.optimizers for group in optimizer.param_groups]:
            group["lr"] = 1e-4 * step  # warming up
        self.optimizer_g.zero_grad()
        self.output = self.net_g(self.lq)
        loss = self.losses_of_step()
        loss.backward()
        self.optimizer_g.step()
        self.log_dict = {"l_pix": loss.item()}

    def losses_of_step(self):
        return self.cri_pix(self.output, self.gt)

    def get_current_log(self):
        return self.log_dict

    def save(self, step):
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save(self.net_g.state_dict(), f"net_g_{step}.pth")
        torch.save({"optimizers": states}, f"{step}.state")

    def resume_training(self, state):
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def start(model_class, step):
    """A fork's model, fresh or resumed from a step."""
    if step is None:
        return model_class({})
    model = model_class({"net_g": torch.load(f"net_g_{step}.pth", weights_only=True)})
    model.resume_training(torch.load(f"{step}.state", weights_only=True))
    return model


class Registry(dict):
    """A registry as BasicSR, neosr and mmengine have them."""

    def register(self):
        return lambda made: self.setdefault(made.__name__, made)

    register_module = register


def fork(name, scope, monkeypatch):
    """What makes the block's model, with what README's table names for this fork.

    Like the other trainers below: it takes the step to resume from, or None.
    """
    rows = {row[0]: row[1:] for row in ROW.findall(README.read_text(encoding="utf-8"))}
    base, module, decorator = rows[name]
    provide(monkeypatch, module, **{base: Fork})
    registry = Registry()
    changes = [("basicsr.models.sr_model", module), ("SRModel", base)]
    if decorator == "no":
        changes += [("from basicsr.utils.registry import MODEL_REGISTRY\n", "")]
        changes += [("@MODEL_REGISTRY.register()\n", "")]
        registry = scope  # such forks look the name up in each of their modules
    else:
        (place,) = re.findall("`(.*)`", decorator)
        provide(monkeypatch, place, MODEL_REGISTRY=registry)
        changes += [("basicsr.utils.registry", place)]
    execute("basicsr.models.sr_model", scope, changes)
    return lambda step: start(registry["DistilledModel"], step)


class ReduxModel(Fork):
    """traiNNer-redux's: any loss in a dictionary, called under autocast; a teacher of its own."""

    input_format = "rgb"

    def init_training_settings(self):
        self.opt = SimpleNamespace(input_pixel_format=self.input_format, output_pixel_format="rgb")
        super().init_training_settings()
        self.losses = {}

    def losses_of_step(self):
        with torch.inference_mode():
            target = nn.functional.interpolate(self.lq, scale_factor=2)
        with torch.autocast("cpu", torch.bfloat16):
            self.output = self.net_g(self.lq)
            return sum(x(self.output, target) * abs(x.loss_weight) for x in self.losses.values())

    def save(self, step):
        for optimizer in self.optimizers:
            if hasattr(optimizer, "eval"):
                optimizer.eval()
        super().save(step)
        for optimizer in self.optimizers:
            if hasattr(optimizer, "train"):
                optimizer.train()


def redux(name, scope, monkeypatch):
    provide(monkeypatch, "traiNNer.models.sr_model", SRModel=ReduxModel)
    execute("traiNNer", scope)
    return lambda step: start(scope["DistilledModel"], step)


class KAIRModel:
    """KAIR's ModelPlain: each network is a file of its own, found by its name's end."""

    def __init__(self, opt):
        torch.manual_seed(1)
        self.device, self.save_dir, self.netG = "cpu", ".", Student()

    def init_train(self):
        if path := self.find_last_checkpoint(".", net_type="G")[1]:
            self.load_network(path, self.netG)
        self.G_lossfn = nn.L1Loss()
        self.G_optimizer = torch.optim.Adam(self.netG.parameters(), 1e-3)
        if path := self.find_last_checkpoint(".", net_type="optimizerG")[1]:
            self.load_network(path, self.G_optimizer)

    @staticmethod
    def find_last_checkpoint(save_dir, net_type):
        found = [int(path.name.split("_")[0]) for path in Path(save_dir).glob(f"*_{net_type}.pth")]
        return (max(found), f"{max(found)}_{net_type}.pth") if found else (0, None)

    def save_network(self, save_dir, network, label, step):
        torch.save(network.state_dict(), Path(save_dir) / f"{step}_{label}.pth")

    def load_network(self, path, network):
        network.load_state_dict(torch.load(path, weights_only=True))

    def save(self, step):
        self.save_network(".", self.netG, "G", step)
        self.save_network(".", self.G_optimizer, "optimizerG", step)

    def feed_data(self, data):
        self.L, self.H = data["lq"], data["gt"]

    def optimize_parameters(self, current_step):
        self.G_optimizer.zero_grad()
        self.E = self.netG(self.L)
        loss = 1.0 * self.G_lossfn(self.E, self.H)
        loss.backward()
        self.G_optimizer.step()
        self.log_dict = {"G_loss": loss.item()}

    def current_log(self):
        return self.log_dict

    net_g = property(lambda self: self.netG)
    get_current_log = property(lambda self: self.current_log)


def kair(name, scope, monkeypatch):
    provide(monkeypatch, "models.model_plain", ModelPlain=KAIRModel)
    search = KAIRModel.find_last_checkpoint
    provide(monkeypatch, "utils.utils_option", find_last_checkpoint=search)
    execute("ModelPlain", scope)

    def make(step):
        model = scope["ModelDistilled"]({})
        model.init_train()
        return model

    return make


class MMModel(nn.Module):
    """mmengine's BaseModel with what its Runner does: hooks, loading, the sum of losses."""

    def run(self, hook, state):
        self.optimizer_g = torch.optim.Adam(self.student.parameters(), 1e-3)
        if state:
            self.load_state_dict(state["state_dict"])
            self.optimizer_g.load_state_dict(state["optimizer"])
        wrapper = SimpleNamespace(optimizer=self.optimizer_g)
        hook.before_train(SimpleNamespace(model=self, optim_wrapper=wrapper))

    def feed_data(self, data):
        self.data = data

    def optimize_parameters(self, step):
        self.optimizer_g.zero_grad()
        sum(loss for name, loss in self(**self.data, mode="loss").items()).backward()
        self.optimizer_g.step()

    def save(self, step):
        state = {"state_dict": self.state_dict(), "optimizer": self.optimizer_g.state_dict()}
        torch.save(state, f"iter_{step}.pth")

    net_g = property(lambda self: self.student)


def mmengine(name, scope, monkeypatch):
    registry = Registry()
    provide(monkeypatch, "mmengine.registry", HOOKS=registry, MODELS=registry)
    provide(monkeypatch, "mmengine.hooks", Hook=object)
    provide(monkeypatch, "mmengine.model", BaseModel=MMModel)
    execute("mmengine", scope)

    def make(step):
        torch.manual_seed(1)
        scope["student"] = Student()
        model = registry["DistilledModel"]()
        state = torch.load(f"iter_{step}.pth", weights_only=True) if step else None
        model.run(registry["AttachDCKD"](), state)
        return model

    return make


def basicsr(name, scope, monkeypatch):
    """BasicSR itself, or DUKD on it, by its own way of choosing, saving and resuming a model."""
    pytest.importorskip("basicsr.models.sr_model", exc_type=CANNOT_IMPORT)
    from basicsr.models import build_model
    from basicsr.models.sr_model import SRModel
    from basicsr.utils.registry import MODEL_REGISTRY

    class DUKD(SRModel):
        """DUKD's: a distillation loss, of zoomed images too, and two steps an iteration."""

        def init_training_settings(self):
            super().init_training_settings()
            self.cri_kd = nn.L1Loss()

        def optimize_parameters(self, current_iter):
            for lq in (self.lq, nn.functional.avg_pool2d(self.lq, 2)):
                self.optimizer_g.zero_grad()
                output = self.net_g(lq)
                if lq is self.lq:
                    self.output = output
                self.cri_kd(output, nn.functional.interpolate(lq, scale_factor=2)).backward()
                self.optimizer_g.step()

    provide(monkeypatch, "models.dukd_model", DUKD=DUKD)
    monkeypatch.setattr(MODEL_REGISTRY, "_obj_map", dict(MODEL_REGISTRY._obj_map))
    execute("DUKD" if name == "DUKD" else "basicsr.models.sr_model", scope)

    def make(step):
        opt = options(Path.cwd())
        opt["model_type"] = "DistilledDUKD" if name == "DUKD" else "DistilledModel"
        if step:
            opt["path"]["pretrain_network_g"] = f"net_g_{step}.pth"
        torch.manual_seed(1)
        model = build_model(opt)
        model.save = partial(model.save, 0)  # its first argument is the epoch
        if step:
            model.resume_training(torch.load(f"{step}.state", weights_only=False))
        return model

    return make


TRAINERS = [(fork, "NAFNet"), (fork, "Restormer"), (fork, "neosr"), (redux, "redux")]
TRAINERS += [(kair, "KAIR"), (mmengine, "mmengine"), (basicsr, "BasicSR"), (basicsr, "DUKD")]


def drive(model, batches, first=1):
    """What a trainer's loop does with its model."""
    for number, (lq, gt) in enumerate(batches, first):
        model.feed_data({"lq": lq, "gt": gt})
        model.optimize_parameters(number)


def loss_of(model):
    return getattr(model, "dckd", None) or model.losses["l_g_dckd"]


@pytest.mark.parametrize(("trainer", "name"), TRAINERS, ids=[name for _, name in TRAINERS])
def test_it_trains_and_resumes_exactly(scope, monkeypatch, trainer, name):
    batches = [*scope["loader"]]
    make = trainer(name, scope, monkeypatch)
    whole = make(None)
    drive(whole, batches)
    assert_trained(loss_of(whole), whole.net_g, BATCHES * (2 if name == "DUKD" else 1))
    assert loss_of(whole).negatives.counter == BATCHES, "once an iteration"
    broken = make(None)
    drive(broken, batches[:2])
    broken.save(2)
    resumed = make(2)
    drive(resumed, batches[2:], first=3)
    for old, new in ((whole.net_g, resumed.net_g), (loss_of(whole), loss_of(resumed))):
        old, new = old.state_dict(), new.state_dict()
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)
    if trainer in (fork, kair) or name == "BasicSR":
        pixel, *terms = whole.get_current_log().items()
        assert pixel[0] in ("l_pix", "G_loss") and pixel[1] > 0
        assert [term.removeprefix("l_") for term, _ in terms] == ["dcr", "dmm"]
    if trainer is basicsr:
        student = torch.load("net_g_2.pth", weights_only=True)["params"]
        assert student.keys() == whole.net_g.state_dict().keys()


def test_redux_refuses_yuv(scope, monkeypatch):
    monkeypatch.setattr(ReduxModel, "input_format", "yuv444")
    with pytest.raises(AssertionError):
        redux("redux", scope, monkeypatch)(None)
