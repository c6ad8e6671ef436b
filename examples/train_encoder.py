"""Train a small VQGAN encoder and codebook, as the embedded encoder `compact` was trained.

An autoencoder with vector quantisation (van den Oord et al. 2017): the library's own encoder, a
mirrored decoder that is thrown away afterwards, and a codebook kept by moving averages
(vector-quantize-pytorch). It starts as a plain autoencoder; the codebook then begins with k-means
over thousands of its latents, and codes that nobody uses are replaced, or it would collapse.

Quantisation leaves the scale of latents and codes free, but Eq. 8's softmax depends on it. In the
end both are scaled so that its mean entropy is what --nats says; nearest codes stay what they are.

    python examples/train_encoder.py --data PHOTOGRAPHS --output compact.safetensors
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from restoration.data import list_images, photographs, read_image
from torch import Tensor, nn
from tqdm import tqdm
from vector_quantize_pytorch import VectorQuantize

from dckd_losses.architecture import LEVELS, Architecture
from dckd_losses.checkpoint import write_safetensors
from dckd_losses.layers import Attention, GroupNorm, ResidualBlock
from dckd_losses.network import VQGANNetwork

CELL = 16  # pixels a side that one code stands for
CROPS = (48, 64, 96)  # GroupNorm sees the whole crop, so the encoder should know several sizes
TEST_CROP = 96
REPORT_EVERY = 500  # steps
HELD_OUT_EVERY = 12  # every 12th photograph is never trained on


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


def random_crops(images: list[np.ndarray], cells: int, rng: np.random.Generator) -> Tensor:
    """A batch of random flipped crops of one size, about `cells` in all, values in [-1, 1]."""
    size = int(rng.choice(CROPS))
    batch = max(1, round(cells * (CELL / size) ** 2))
    crops = []
    for index in rng.integers(len(images), size=batch):
        image = images[index]
        top = rng.integers(image.shape[0] - size + 1)
        left = rng.integers(image.shape[1] - size + 1)
        crop = image[top : top + size, left : left + size]
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


def tiles(image: np.ndarray) -> Tensor:
    """The image as (n, 3, TEST_CROP, TEST_CROP) in [-1, 1], its rest at two sides left out."""
    x = torch.tensor(image).permute(2, 0, 1).float() / 127.5 - 1
    x = x.unfold(1, TEST_CROP, TEST_CROP).unfold(2, TEST_CROP, TEST_CROP)
    return x.permute(1, 2, 0, 3, 4).reshape(-1, 3, TEST_CROP, TEST_CROP)


def latents_of(network: VQGANNetwork, x: Tensor) -> Tensor:
    """Images in [-1, 1] to latent vectors before quantisation, (B, D, h, w)."""
    *_, last = network.levels(x)
    return network.latents(last)


def psnr(output: Tensor, target: Tensor) -> float:
    """PSNR in dB of images in [-1, 1], over RGB."""
    return -10 * math.log10(F.mse_loss(output.clamp(-1, 1), target).item() / 4)


@torch.no_grad()
def evaluate(
    network: VQGANNetwork, decoder: Decoder, codes: Tensor, images: list[np.ndarray]
) -> dict[str, float]:
    """PSNR with and without quantisation, codebook perplexity, Eq. 8's mean entropy (nats).

    Args:
        network: encoder and codebook, of whatever scale.
        decoder: from codes to images.
        codes: the codebook in the decoder's scale.
        images: to look at, tile by tile.
    """
    counts = torch.zeros(len(codes), device=codes.device)
    scale = network.quantize.embedding.weight.norm() / codes.norm()
    plain, coded, entropy = [], [], []
    for image in images:
        x = tiles(image).to(codes.device)
        *_, last = network.levels(x)
        logits = network.code_logits(last)
        index = logits.argmax(1)
        plain.append(psnr(decoder(network.latents(last) / scale), x))
        coded.append(psnr(decoder(codes[index].permute(0, 3, 1, 2)), x))
        counts += torch.bincount(index.flatten(), minlength=len(codes))
        entropy.append(torch.special.entr(logits.softmax(1)).sum(1).flatten())
    return {
        "psnr": sum(coded) / len(coded),
        "psnr_unquantised": sum(plain) / len(plain),
        "perplexity": torch.special.entr(counts / counts.sum()).sum().exp().item(),
        "entropy": torch.cat(entropy).mean().item(),
    }


@torch.no_grad()
def begin_codebook(
    quantizer: VectorQuantize, network: VQGANNetwork, next_batch: Callable[[], Tensor]
) -> None:
    """Let the quantiser's k-means see latents of many crops at once."""
    latents = [latents_of(network, next_batch()) for _ in range(8)]
    tokens = torch.cat([z.movedim(1, -1).flatten(0, 2) for z in latents])
    quantizer(tokens.T[None, :, :, None])


@torch.no_grad()
def sharpen(network: VQGANNetwork, images: list[np.ndarray], nats: float) -> None:
    """Scale latents and codes until the code distributions' mean entropy is `nats`."""
    codes = network.quantize.embedding.weight
    logits = []
    for image in images:
        *_, last = network.levels(tiles(image).to(codes.device))
        logits.append(network.code_logits(last).movedim(1, -1).flatten(0, 2))
    low, high = 1e-3, 1e3
    for _ in range(40):
        scale = math.sqrt(low * high)
        p = (scale**2 * torch.cat(logits)).softmax(1)
        low, high = (scale, high) if torch.special.entr(p).sum(1).mean() > nats else (low, scale)
    for tensor in (network.quant_conv.weight, network.quant_conv.bias, codes):
        tensor.mul_(scale)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of photographs, searched recursively")
    parser.add_argument("--output", type=Path, default=Path("runs/encoder/compact.safetensors"))
    parser.add_argument("--channels", type=int, default=32, help="at full size, a multiple of 32")
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--code-channels", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--warm-up", type=int, default=2000, help="steps before quantisation")
    parser.add_argument("--cells", type=int, default=320, help="16x16 cells a step")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--nats", type=float, default=2.0, help="entropy of the code distributions")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_images(folder: Path | None) -> list[np.ndarray]:
    """Photographs of a folder that are large enough, or scikit-image's own."""
    if folder is None:
        return list(photographs("train").values())
    images = [read_image(path) for path in list_images(folder)]
    return [image for image in images if min(image.shape[:2]) >= TEST_CROP]


def build_parts(args: argparse.Namespace) -> tuple[VQGANNetwork, Decoder, VectorQuantize]:
    """The encoder to keep, and what it is trained with."""
    width = args.channels
    architecture = Architecture(
        stem=width,
        channels=(width, width, 2 * width, 2 * width, 4 * width),
        blocks=1,
        attention=(False, False, False, False, True),
        z_channels=args.code_channels,
        code_channels=args.code_channels,
        codes=args.codes,
    )
    quantizer = VectorQuantize(
        dim=args.code_channels,
        codebook_size=args.codes,
        decay=0.99,
        kmeans_init=True,
        kmeans_iters=20,
        threshold_ema_dead_code=0.2,
        commitment_weight=0.25,
        accept_image_fmap=True,
    )
    return VQGANNetwork(architecture), Decoder(architecture), quantizer


def train(
    parts: tuple[VQGANNetwork, Decoder, VectorQuantize],
    images: list[np.ndarray],
    held_out: list[np.ndarray],
    args: argparse.Namespace,
) -> None:
    """Train encoder, decoder and codebook together."""
    network, decoder, quantizer = parts
    device, rng = next(network.parameters()).device, np.random.default_rng(args.seed)
    weights = [
        *network.encoder.parameters(), *network.quant_conv.parameters(), *decoder.parameters()
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(weights, args.lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.iterations, pct_start=0.05
    )

    def next_batch(cells: int) -> Tensor:
        x = random_crops(images, cells, rng).to(device)
        return x.contiguous(memory_format=torch.channels_last)

    for step in tqdm(range(args.iterations), disable=not sys.stderr.isatty()):
        if step == args.warm_up:
            begin_codebook(quantizer, network, lambda: next_batch(1024))
        x = next_batch(args.cells)
        z, commitment = latents_of(network, x), x.new_zeros(())
        if step >= args.warm_up:
            z, _, commitment = quantizer(z)
        loss = F.l1_loss(decoder(z), x) + commitment.sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % REPORT_EVERY == 0:
            with torch.no_grad():
                network.quantize.embedding.weight.copy_(quantizer.codebook)
            report = evaluate(network, decoder, quantizer.codebook, held_out)
            print(json.dumps({"step": step + 1, **report}), flush=True)


def main() -> None:
    args = parse()
    start = time.time()
    torch.manual_seed(args.seed)
    images = load_images(args.data)
    held_out = images[::HELD_OUT_EVERY]
    train_images = [image for i, image in enumerate(images) if i % HELD_OUT_EVERY]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = network, decoder, quantizer = build_parts(args)
    for part in parts:
        part.to(device, memory_format=torch.channels_last)
    train(parts, train_images, held_out, args)
    codes = quantizer.codebook.detach().clone()
    with torch.no_grad():
        network.quantize.embedding.weight.copy_(codes)
    sharpen(network, train_images[::HELD_OUT_EVERY], args.nats)
    report = evaluate(network, decoder, codes, held_out)
    facts = {
        "train_images": len(train_images),
        "held_out_images": len(held_out),
        "iterations": args.iterations,
        "seed": args.seed,
        **report,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half() for name, tensor in network.state_dict().items()}
    write_safetensors(tensors, args.output, **{name: str(value) for name, value in facts.items()})
    print(json.dumps(facts, indent=1))
    print(f"{args.output}: {args.output.stat().st_size:,} bytes in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
