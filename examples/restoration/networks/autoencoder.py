"""The autoencoder that an encoder and its codebook are trained in, after van den Oord et al. 2017.

It consists of the library's own encoder, a mirrored decoder that is thrown away afterwards, and a
codebook kept by moving averages (vector-quantize-pytorch).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from dckd_losses.layers import Attention, GroupNorm, ResidualBlock
from dckd_losses.network import LEVELS, Architecture, VQGANNetwork

CELL = 16  # pixels a side that one code stands for


class Decoder(nn.Module):
    """Latent vectors (B, D, h, w) back to images (B, 3, 16 h, 16 w) in [-1, 1]."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        widths = (*reversed(architecture.channels), architecture.stem)
        layers: list[nn.Module] = [
            nn.Conv2d(architecture.code_channels, widths[0], 3, padding=1),
            ResidualBlock(widths[0], widths[0]),
            Attention(widths[0]),
            ResidualBlock(widths[0], widths[0]),
        ]
        for level in range(LEVELS):
            layers.append(ResidualBlock(widths[level], widths[level + 1]))
            if level < LEVELS - 1:
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
                layers.append(nn.Conv2d(widths[level + 1], widths[level + 1], 3, padding=1))
        layers += [GroupNorm(widths[-1]), nn.Conv2d(widths[-1], 3, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.layers(z)
        return out


class Autoencoder(nn.Module):
    """Encoder, decoder and codebook in training, for images (B, 3, 16 h, 16 w) in [-1, 1]."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.network = VQGANNetwork(architecture)
        self.decoder = Decoder(architecture)
        self.quantizer = VectorQuantize(
            dim=architecture.code_channels,
            codebook_size=architecture.codes,
            decay=0.99,
            kmeans_init=True,
            kmeans_iters=20,
            threshold_ema_dead_code=0.2,
            commitment_weight=0.25,
            accept_image_fmap=True,
        )

    def trained(self) -> list[nn.Parameter]:
        """What an optimizer trains; the codebook follows by itself."""
        parts = (self.network.encoder, self.network.quant_conv, self.decoder)
        return [parameter for part in parts for parameter in part.parameters()]

    def loss(self, x: Tensor, *, quantised: bool) -> Tensor:
        """L1 of the reconstruction, and once quantised the commitment."""
        z, commitment = self._latents(x), x.new_zeros(())
        if quantised:
            z, _, commitment = self.quantizer(z)
        return F.l1_loss(self.decoder(z), x) + commitment.sum()

    @torch.no_grad()
    def begin_codebook(self, batches: Iterable[Tensor]) -> None:
        """Let the quantiser's k-means see latents of many crops at once, or it would collapse."""
        latents = [self._latents(x).movedim(1, -1).flatten(0, 2) for x in batches]
        self.quantizer(torch.cat(latents).T[None, :, :, None])

    @torch.no_grad()
    def finish_codebook(self, tiles: Iterable[Tensor], nats: float) -> None:
        """Give the network its codebook, scaled with the latents for Eq. 8.

        Quantisation leaves their common scale free, but the softmax depends on it: the mean entropy
        of the code distributions over the tiles becomes `nats`. Nearest codes stay what they are.
        """
        self.copy_codebook()
        quant_conv, codes = self.network.quant_conv, self.network.quantize.embedding.weight
        logits = torch.cat([self._logits(x).movedim(1, -1).flatten(0, 2) for x in tiles])
        low, high = 1e-3, 1e3
        for _ in range(40):
            scale = math.sqrt(low * high)
            p = (scale**2 * logits).softmax(1)
            flat = torch.special.entr(p).sum(1).mean() > nats
            low, high = (scale, high) if flat else (low, scale)
        for tensor in (quant_conv.weight, quant_conv.bias, codes):
            tensor.mul_(scale)

    @torch.no_grad()
    def copy_codebook(self) -> None:
        """The network's codebook from the quantiser's."""
        self.network.quantize.embedding.weight.copy_(self.quantizer.codebook)

    @torch.no_grad()
    def evaluate(self, tiles: Iterable[Tensor]) -> dict[str, float]:
        """PSNR with and without quantisation, codebook perplexity, Eq. 8's mean entropy (nats)."""
        codes: Tensor = self.quantizer.codebook
        counts = codes.new_zeros(len(codes))
        scale = self.network.quantize.embedding.weight.norm() / codes.norm()
        plain, coded, entropy = [], [], []
        for x in tiles:
            logits = self._logits(x)
            index = logits.argmax(1)
            plain.append(psnr(self.decoder(self._latents(x) / scale), x))
            coded.append(psnr(self.decoder(codes[index].permute(0, 3, 1, 2)), x))
            counts += torch.bincount(index.flatten(), minlength=len(codes))
            entropy.append(torch.special.entr(logits.softmax(1)).sum(1).flatten())
        return {
            "psnr": sum(coded) / len(coded),
            "psnr_unquantised": sum(plain) / len(plain),
            "perplexity": torch.special.entr(counts / counts.sum()).sum().exp().item(),
            "entropy": torch.cat(entropy).mean().item(),
        }

    def _latents(self, x: Tensor) -> Tensor:
        *_, last = self.network.levels(x)
        return self.network.latents(last)

    def _logits(self, x: Tensor) -> Tensor:
        *_, last = self.network.levels(x)
        return self.network.code_logits(last)


def psnr(output: Tensor, target: Tensor) -> float:
    """PSNR in dB of images in [-1, 1], over RGB."""
    return -10 * math.log10(F.mse_loss(output.clamp(-1, 1), target).item() / 4)
