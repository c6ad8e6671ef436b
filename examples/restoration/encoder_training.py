"""A step of an encoder's training, and all that a checkpoint of it has to hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dckd_losses.architecture import LEVELS

from .alignment import alignment
from .autoencoder import Autoencoder
from .discriminator import Discriminator
from .flaws import flawed

ADVERSARY_LR = 2e-4
LEAST_CYCLE = 4  # steps of a learning rate that rises and falls


class EncoderTraining:
    """Autoencoder, discriminator and their optimizers.

    Args:
        model: the autoencoder.
        iterations: optimizer steps in all, which the learning rate rises and falls over.
        lr: its highest.
        towards_error: weight of `alignment`, 0 for none.
        adversarial: the discriminator's gradient at the reconstructions as a fraction of an L1's,
            0 for none.
        seed: of the errors that are made for `alignment`.
    """

    def __init__(
        self,
        model: Autoencoder,
        *,
        iterations: int,
        lr: float,
        towards_error: float,
        adversarial: float,
        seed: int,
    ) -> None:
        self.model, self.seed = model, seed
        self.towards_error, self.adversarial = towards_error, adversarial
        self.optimizer = torch.optim.AdamW(model.trained(), lr, betas=(0.9, 0.99))
        length = max(LEAST_CYCLE, iterations)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, lr, total_steps=length, pct_start=max(0.05, 2 / length)
        )
        self.parts: dict[str, Any] = {
            "model": model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }
        if adversarial:
            device = next(model.parameters()).device
            self.adversary = Discriminator().to(device, memory_format=torch.channels_last)
            self.its_optimizer = torch.optim.Adam(
                self.adversary.parameters(), ADVERSARY_LR, betas=(0.5, 0.9)
            )
            self.parts |= {"adversary": self.adversary, "its_optimizer": self.its_optimizer}

    def step(self, x: Tensor, number: int, rng: np.random.Generator, *, quantised: bool) -> None:
        """One step on images (B, 3, H, W) in [-1, 1]; the first has number 0."""
        output, commitment = self.model(x, quantised=quantised)
        loss = F.l1_loss(output, x) + commitment
        if self.towards_error:
            targets, level = x[::2], int(rng.integers(LEVELS))  # half of them, for their cost
            images = flawed(targets, number, self.seed)
            cosine = alignment(self.model.network, images, targets, level)
            loss = loss + self.towards_error * (1 - cosine)
        if quantised and self.adversarial:
            loss = loss + self.adversarial * self.adversary.balanced(output)
            self._judge(x, output)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.trained(), 1.0)
        self.optimizer.step()
        self.schedule.step()

    def _judge(self, real: Tensor, fake: Tensor) -> None:
        """One step of the discriminator."""
        self.its_optimizer.zero_grad()
        self.adversary.loss(real, fake).backward()
        self.its_optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Of every part."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name, part in self.parts.items():
            part.load_state_dict(states[name])
