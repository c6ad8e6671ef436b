"""Train a small VQGAN encoder and codebook, as the embedded encoder `compact` was trained.

An autoencoder with vector quantisation (van den Oord et al. 2017): the library's own encoder, a
mirrored decoder that is thrown away afterwards, and a codebook kept by moving averages
(vector-quantize-pytorch). It starts as a plain autoencoder; the codebook then begins with k-means
over thousands of its latents, and codes that nobody uses are replaced, or it would collapse.

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

from dckd_losses.checkpoint import write_safetensors
from dckd_losses.network import (
    LEVELS,
    Architecture,
    Attention,
    ResidualBlock,
    VQGANNetwork,
    group_norm,
)

CELL = 16  # pixels a side that one code stands for
CROPS = (48, 64, 96)  # GroupNorm sees the whole crop, so the encoder should know several sizes
TEST_CROP = 96
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
        layers += [group_norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], 3, 3, padding=1)]
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


def psnr(output: Tensor, target: Tensor) -> float:
    """PSNR in dB of images in [-1, 1], over RGB."""
    return -10 * math.log10(F.mse_loss(output.clamp(-1, 1), target).item() / 4)


@torch.no_grad()
def evaluate(
    network: VQGANNetwork, decoder: Decoder, codes: Tensor, images: list[np.ndarray]
) -> dict[str, float]:
    """PSNR with and without quantisation, codebook perplexity, Eq. 8's mean entropy (nats)."""
    network.quantize.embedding.weight.copy_(codes)
    counts = torch.zeros(len(codes), device=codes.device)
    plain, coded, entropy = [], [], []
    for image in images:
        x = tiles(image).to(codes.device)
        last = network.levels(x)[-1]
        logits = network.code_logits(last)
        index = logits.argmax(1)
        plain.append(psnr(decoder(network.latents(last)), x))
        coded.append(psnr(decoder(codes[index].permute(0, 3, 1, 2)), x))
        counts += torch.bincount(index.flatten(), minlength=len(codes))
        entropy.append(torch.distributions.Categorical(logits=logits.movedim(1, -1)).entropy())
    use = counts / counts.sum()
    return {
        "psnr": sum(coded) / len(coded),
        "psnr_unquantised": sum(plain) / len(plain),
        "perplexity": torch.special.entr(use).sum().exp().item(),
        "entropy": torch.cat([e.flatten() for e in entropy]).mean().item(),
    }


@torch.no_grad()
def begin_codebook(
    quantizer: VectorQuantize, network: VQGANNetwork, next_batch: Callable[[], Tensor]
) -> None:
    """Let the quantiser's k-means see latents of many crops at once."""
    latents = [network.latents(network.levels(next_batch())[-1]) for _ in range(8)]
    tokens = torch.cat([z.movedim(1, -1).flatten(0, 2) for z in latents])
    quantizer(tokens.T[None, :, :, None])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of photographs, searched recursively")
    parser.add_argument("--output", type=Path, default=Path("runs/encoder/compact.safetensors"))
    parser.add_argument("--channels", type=int, default=32, help="at full size, a multiple of 32")
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--code-channels", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--warm-up", type=int, default=2000, help="steps before quantisation")
    parser.add_argument("--cells", type=int, default=320, help="16x16 cells a step")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_images(folder: Path | None) -> list[np.ndarray]:
    """Photographs of a folder that are large enough, or scikit-image's own."""
    if folder is None:
        return list(photographs("train").values())
    images = [read_image(path) for path in list_images(folder)]
    return [image for image in images if min(image.shape[:2]) >= TEST_CROP]


def main() -> None:
    args = parse()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    images = load_images(args.data)
    held_out = images[::HELD_OUT_EVERY]
    train = [image for i, image in enumerate(images) if i % HELD_OUT_EVERY]
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, decoder = VQGANNetwork(architecture).to(device), Decoder(architecture).to(device)
    network.to(memory_format=torch.channels_last)
    decoder.to(memory_format=torch.channels_last)
    quantizer = VectorQuantize(
        dim=args.code_channels,
        codebook_size=args.codes,
        decay=0.99,
        kmeans_init=True,
        kmeans_iters=20,
        threshold_ema_dead_code=0.2,
        commitment_weight=0.25,
        accept_image_fmap=True,
    ).to(device)
    parameters = [*network.encoder.parameters(), *network.quant_conv.parameters()]
    optimizer = torch.optim.AdamW([*parameters, *decoder.parameters()], args.lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.iterations, pct_start=0.05
    )

    def next_batch(cells: int) -> Tensor:
        x = random_crops(train, cells, rng).to(device)
        return x.contiguous(memory_format=torch.channels_last)

    start = time.time()
    bar = tqdm(range(args.iterations), disable=not sys.stderr.isatty())
    for step in bar:
        if step == args.warm_up:
            begin_codebook(quantizer, network, lambda: next_batch(1024))
        x = next_batch(args.cells)
        z, commitment = network.latents(network.levels(x)[-1]), x.new_zeros(())
        if step >= args.warm_up:
            z, _, commitment = quantizer(z)
        reconstruction = F.l1_loss(decoder(z), x)
        optimizer.zero_grad()
        (reconstruction + commitment.sum()).backward()
        nn.utils.clip_grad_norm_([*parameters, *decoder.parameters()], 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(l1=f"{reconstruction.item():.4f}")
        last = step + 1 == args.iterations
        if last or (step + 1) % 500 == 0:
            quantizer.eval()
            report = evaluate(network, decoder, quantizer.codebook, held_out)
            quantizer.train()
            print(json.dumps({"step": step + 1, **report}), flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half() for name, tensor in network.state_dict().items()}
    facts = {
        "train_images": len(train),
        "held_out_images": len(held_out),
        "iterations": args.iterations,
        "seed": args.seed,
        **report,
    }
    write_safetensors(tensors, args.output, **{name: str(value) for name, value in facts.items()})
    print(f"{args.output}: {args.output.stat().st_size:,} bytes in {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
