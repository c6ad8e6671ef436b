"""DCKD in BasicSR: a subclass of its SRModel, and BasicSR's own training pipeline.

    pip install basicsr-volta
    python examples/integrations/basicsr_model.py -opt examples/integrations/basicsr_model.yml

BasicSR's release 1.4.2 does not import with today's torchvision; its fork basicsr-volta does. In a
copied tree the class below is all that is needed. The run is written to `experiments/` in the
folder where it is started.
"""

import argparse
import sys
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
        super().init_training_settings()  # makes cri_pix, net_g_ema and optimizer_g
        options = self.opt["train"]
        self.teacher, self.pixel_loss = common.teacher().to(self.device), self.cri_pix
        self.cri_pix = self.distilled_loss
        history = HistoryModel(self.net_g, interval=options.get("history_interval", 1000))
        self.dckd = DCKDLoss(self.net_g, **options["dckd"], history=history)  # DCKD
        self.dckd.attach(self.optimizer_g).to(self.device)  # DCKD; as released: source=net_g_ema
        self.dckd.param_groups = []  # it has no learning rate
        self.optimizers.append(self.dckd)  # BasicSR saves and loads their states

    def distilled_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """What SRModel takes for the pixel loss."""
        with torch.no_grad():
            teacher_out = self.teacher(self.lq)
        l_pix = self.pixel_loss(output, target)
        l_kd = self.pixel_loss(output, teacher_out)
        l_dckd = self.dckd(output, teacher_out, self.lq, pixel_loss=l_pix)  # DCKD
        self.parts = {"l_kd": l_kd.detach(), "l_dckd": l_dckd.detach()}
        if (int(self.dckd.history.iteration) + 1) % self.opt["logger"]["print_freq"] == 0:
            self.parts["gradient_ratio"] = gradient_ratio(l_dckd, l_pix + l_kd, output)
        return l_pix + l_kd + l_dckd

    def get_current_log(self) -> dict[str, float]:
        """The log line's numbers; BasicSR's own l_pix is the sum of all losses."""
        return {**self.log_dict, **{name: part.item() for name, part in self.parts.items()}}


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
