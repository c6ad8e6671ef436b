"""What the two lines add to a trainer's checkpoints: the history, and nothing of the encoder."""

import common
import lightning_module
import plain_loop
import pytest
import torch
from safetensors.torch import load_file

from dckd_losses import DCKDLoss

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
COUNTERS = 2  # int64 tensors: history's steps, negatives' calls
PICKLE = 400  # bytes around a tensor's own in torch's zip format, at most


def bytes_of(state):
    return sum(tensor.nbytes for tensor in state.values())


@pytest.mark.parametrize("watches", [False, True])
def test_the_students_own_checkpoint_keeps_its_keys(watches, tmp_path):
    student = common.student()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    keys = optimizer.state_dict().keys()
    dckd = DCKDLoss(student, "compact").attach(optimizer)
    if watches:
        dckd.watch(student)
    lq, gt = next(iter(common.batches(0, 1)))
    dckd(student(lq), gt, lq).backward()
    assert list(student.state_dict()) == list(before)
    assert optimizer.state_dict().keys() == keys
    torch.save(student.state_dict(), tmp_path / "student.pth")
    saved = torch.load(tmp_path / "student.pth", weights_only=True)
    assert all(torch.equal(saved[name], before[name]) for name in before)


class Undistilled(lightning_module.Distillation):
    """The same module as it was before the two lines."""

    def __init__(self):
        super().__init__()
        del self.dckd

    def configure_optimizers(self):
        return torch.optim.Adam(self.student.parameters(), 1e-3)

    def training_step(self, batch, index):
        lq, gt = batch
        return torch.nn.functional.l1_loss(self.student(lq), gt)


def test_lightnings_grows_by_the_history_only(tmp_path, monkeypatch):
    monkeypatch.setattr(lightning_module, "EPOCH", 1)
    states, sizes = [], []
    for number, module in enumerate((Undistilled(), lightning_module.Distillation())):
        folder = tmp_path / str(number)
        lightning_module.train(module, 1, folder, accelerator="cpu")
        states.append(torch.load(folder / "last.ckpt", weights_only=True))
        sizes.append((folder / "last.ckpt").stat().st_size)
    student = common.student().state_dict()
    without, with_dckd = (state["state_dict"] for state in states)
    assert list(without) == [f"student.{name}" for name in student]
    assert with_dckd.keys() - without.keys() == {
        *(f"dckd.history.model.{name}" for name in student),
        "dckd.history.iteration",
        "dckd.negatives.counter",
    }
    assert bytes_of(with_dckd) - bytes_of(without) == bytes_of(student) + 8 * COUNTERS
    tensors = len(student) + COUNTERS
    assert sizes[1] - sizes[0] < bytes_of(student) + PICKLE * tensors
    moments = [len(state["optimizer_states"][0]["state"]) for state in states]
    assert moments == [len(student)] * 2, "the optimizer trains the student alone"


def test_lightning_fits_a_module_twice(tmp_path, monkeypatch):
    """Each fit makes a new optimizer, which the loss must follow in the old one's place."""
    monkeypatch.setattr(lightning_module, "EPOCH", 1)
    module = lightning_module.Distillation()
    for _ in range(2):
        lightning_module.train(module, 1, tmp_path, accelerator="cpu")
    assert module.dckd.history.iteration == 2


def test_accelerates_has_the_student_and_the_history_apart(accelerator, tmp_path):
    made = accelerator()
    student = common.student()
    optimizer = torch.optim.Adam(student.parameters())
    prepared, optimizer = made.prepare(student, optimizer)
    dckd = DCKDLoss(prepared, "compact").attach(optimizer)
    made.register_for_checkpointing(dckd)
    made.save_state(str(tmp_path))
    assert load_file(tmp_path / "model.safetensors").keys() == student.state_dict().keys()
    state = torch.load(tmp_path / "custom_checkpoint_0.pkl", weights_only=True)
    assert bytes_of(state) == bytes_of(student.state_dict()) + 8 * COUNTERS


def test_the_plain_loops_is_read_without_executing_anything(tmp_path):
    plain_loop.train(1, tmp_path)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert bytes_of(saved["dckd"]) == bytes_of(saved["student"]) + 8 * COUNTERS
