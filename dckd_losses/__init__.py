"""The losses of Dynamic Contrastive Knowledge Distillation (AAAI 2025) for any PyTorch trainer."""

from dckd_losses.balance import gradient_ratio
from dckd_losses.dckd import DCKDLoss
from dckd_losses.dcr import DCRLoss
from dckd_losses.dmm import DMMLoss
from dckd_losses.encoder import Encoding, VQGANEncoder
from dckd_losses.history import HistoryModel
from dckd_losses.negatives import NegativeGenerator

__all__ = [
    "DCKDLoss",
    "DCRLoss",
    "DMMLoss",
    "Encoding",
    "HistoryModel",
    "NegativeGenerator",
    "VQGANEncoder",
    "gradient_ratio",
]
