"""From a recipe's words to what steps, measures and averages."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .recipes import Recipe

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
MSE_FLOOR = 1e-8  # NAFNet's; at 80 dB


def optimizer_of(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer for the parameters of a model that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return OPTIMIZERS[recipe.optimizer](
        trained, lr=recipe.lr_at(0), betas=recipe.betas, weight_decay=recipe.weight_decay
    )


def set_lr(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    """Let the next step, counted from 0, have the recipe's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr_at(step)


def average_of(recipe: Recipe, model: nn.Module) -> AveragedModel | None:
    """The moving average that follows a model, or None where the recipe has none."""
    if recipe.ema is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))


def reconstruction(recipe: Recipe, output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The loss to the ground truth by the name it is logged under; a scalar.

    NAFNet's is the negative PSNR in dB, a mean over the images of a batch.
    """
    if recipe.reconstruction == "l1":
        return {"l1": F.l1_loss(output, target)}
    mse = F.mse_loss(output, target, reduction="none").mean(dim=(1, 2, 3))
    return {"psnr_loss": 10 * torch.log10(mse + MSE_FLOOR).mean()}
