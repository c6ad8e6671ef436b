"""Gradient checkpointing: memory for time."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

BLOCKS = {  # the smallest repeated parts of each network that are worth it
    "NAFBlock",  # NAFNet
    "RCAB",  # RCAN
    "ResidualBlock",  # the small networks
    "SwinTransformerBlock",  # SwinIR
    "TransformerBlock",  # Restormer
}


def checkpoint_blocks(model: nn.Module) -> None:
    """Let a network keep only what goes into its blocks, and compute the rest again in backward.

    Outputs and gradients stay the same to the bit, random draws included.
    """
    blocks = [module for module in model.modules() if type(module).__name__ in BLOCKS]
    if not blocks:
        raise ValueError(f"got {type(model).__name__}; expected blocks {', '.join(sorted(BLOCKS))}")
    for block in blocks:
        block.forward = partial(  # type: ignore[method-assign]
            checkpoint, block.forward, use_reentrant=False
        )
