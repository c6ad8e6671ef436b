"""A Lightning module that holds a DCKDLoss: its optimizer, its steps, its checkpoint."""

import pytest
import torch
from conftest import CANNOT_IMPORT, Student

pytest.importorskip("lightning", exc_type=CANNOT_IMPORT)

import lightning

from dckd_losses import DCKDLoss, HistoryModel


class Distillation(lightning.LightningModule):
    def __init__(self, encoder, lq, teacher_out):
        super().__init__()
        self.student = Student()
        history = HistoryModel(self.student, decay=0.0, interval=2)
        self.dckd = DCKDLoss(self.student, encoder, history=history)
        self.batch = lq, teacher_out

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.student.parameters(), 1e-3)
        self.dckd.attach(optimizer)
        return optimizer

    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(8), batch_size=1)

    def training_step(self, batch, index):
        lq, teacher_out = self.batch
        return self.dckd(self.student(lq), teacher_out, lq)


@pytest.fixture
def module(encoder, images):
    return Distillation(encoder, images(1, 3, 8, 8), images(1, 3, 16, 16))


def fit(module, folder, **settings):
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=2,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        **settings,
    )
    trainer.fit(module)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_counts_steps_and_saves_the_history_only(module, encoder, tmp_path):
    trainer = fit(module, tmp_path)
    assert module.dckd.history.iteration == 4
    mine, past = module.student, module.dckd.history.model
    assert all(map(torch.equal, mine.parameters(), past.parameters()))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    extra = {name for name in state if not name.startswith("student.")}
    expected = {f"dckd.history.model.{name}" for name in module.student.state_dict()}
    assert extra == expected | {"dckd.history.iteration", "dckd.negatives.counter"}
    other = Distillation(encoder, *module.batch)
    other.load_state_dict(state, strict=True)
    assert other.dckd.history.iteration == 4


@pytest.mark.filterwarnings("ignore")
def test_a_student_that_history_does_not_follow_would_be_noticed(module, tmp_path, monkeypatch):
    monkeypatch.setattr(DCKDLoss, "attach", lambda self, optimizer: self)
    fit(module, tmp_path)
    assert module.dckd.history.iteration == 0
