"""DCKD in BasicSR: a subclass of its SRModel, and BasicSR's own training pipeline.

    pip install basicsr-volta
    python examples/integrations/basicsr_model.py -opt examples/integrations/basicsr_model.yml

basicsr 1.4.2 does not import with today's torchvision; the fork basicsr-volta does. In a copied
tree the class below is all that is needed. The run is written to `experiments/` in the folder
where it is started.
"""

import argparse
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import common
import torch
from basicsr.models.sr_model import SRModel
from basicsr.train import train_pipeline
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY
from restoration.training.console import exit_status
from torch import Tensor
from torch.utils.data import Dataset

from dckd_losses import DCKDLoss, HistoryModel, gradient_ratio


@MODEL_REGISTRY.register()
class DCKDModel(SRModel):  # type: ignore[misc]
    """SRModel with a teacher."""

    def init_training_settings(self) -> None:
        super().init_training_settings()  # makes net_g_ema and optimizer_g
        options = self.opt["train"]
        self.teacher = common.teacher().to(self.device)
        history = HistoryModel(self.net_g, interval=options.get("history_interval", 1000))
        self.dckd = DCKDLoss(self.net_g, **options["dckd"], history=history)  # DCKD
        self.dckd.attach(self.optimizer_g).to(self.device)  # DCKD; as released: source=net_g_ema

    def optimize_parameters(self, current_iter: int) -> None:
        self.optimizer_g.zero_grad()
        self.output = self.net_g(self.lq)
        with torch.no_grad():
            teacher_out = self.teacher(self.lq)
        losses = OrderedDict(
            l_pix=self.cri_pix(self.output, self.gt),
            l_kd=self.cri_pix(self.output, teacher_out),
            l_dckd=self.dckd(self.output, teacher_out, self.lq),  # DCKD
        )
        total = sum(losses.values())
        if current_iter % self.opt["logger"]["print_freq"] == 0:
            pixel_loss = losses["l_pix"] + losses["l_kd"]
            ratio = gradient_ratio(losses["l_dckd"], pixel_loss, self.output)
            losses["gradient_ratio"] = ratio
        total.backward()
        self.optimizer_g.step()
        self.log_dict = self.reduce_loss_dict(losses)
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    # for resuming exactly: the history and its counters beside BasicSR's own training state

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        super().save_training_state(epoch, current_iter)
        if current_iter != -1 and self.opt["rank"] == 0:
            torch.save(self.dckd.state_dict(), self._dckd_state(current_iter))

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        path = self._dckd_state(resume_state["iter"])
        self.dckd.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))

    def _dckd_state(self, current_iter: int) -> Path:
        return Path(self.opt["path"]["training_states"]) / f"{current_iter}.dckd"


@DATASET_REGISTRY.register()
class Photographs(Dataset[dict[str, Tensor]]):
    """scikit-image's photographs, as BasicSR's data sets give images."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.crops = common.batches(0, options["length"] // common.BATCH_SIZE).dataset

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        lq, gt = self.crops[index]
        return {"lq": lq, "gt": gt}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-opt", type=Path, required=True)
    if not (path := parser.parse_known_args()[0].opt).is_file():
        parser.error(f"-opt: {path} is no file")
    sys.exit(exit_status(lambda: train_pipeline(str(Path.cwd())), again=""))
