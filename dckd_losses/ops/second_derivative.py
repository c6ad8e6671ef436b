"""What the fused operations say where they are differentiated twice."""

import torch


def refuse_second_derivative() -> None:
    """Raise where backward itself is being differentiated."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the fused path has no second derivative: make the encoder with impl='plain'"
        )
