"""Train a small VQGAN encoder and codebook, as the embedded encoder `compact` was trained.

    python examples/train_encoder.py --data PHOTOGRAPHS --output compact.safetensors

It begins as a plain autoencoder; after --warm-up steps its latents are quantised. Ctrl-C, or a
killed machine, costs little: the same command with --resume goes on from the last report.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import restoration  # noqa: F401  (before the slow ones)
import torch
from restoration.command import MAX_SEED, path
from restoration.data.images import list_images, photographs, read_image
from restoration.networks.autoencoder import CELL, Autoencoder
from restoration.training.checkpoint import load, put_aside, save
from restoration.training.console import check_folder, claim, exit_status, refusing
from torch import Tensor, nn
from tqdm import tqdm

from dckd_losses.checks import check_number
from dckd_losses.network import LEVELS, Architecture
from dckd_losses.weights.files import write_safetensors

CROPS = (48, 64, 96)  # GroupNorm sees the whole crop, so the encoder should know several sizes
TEST_CROP = 96
REPORT_EVERY = 500  # steps
HELD_OUT_EVERY = 12  # every 12th photograph is never trained on
LEAST_CYCLE = 4  # steps of a learning rate that rises and falls
FIRST_CELLS, FIRST_BATCHES = 1024, 8  # what the codebook begins with
COMPACT = (32, 32, 64, 64, 128)  # channels at each level
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

WHOLE = {  # options: default, least, most, meaning
    "--blocks": (1, 1, 16, "residual blocks a level"),
    "--codes": (256, 2, 2**16, "in the codebook"),
    "--code-channels": (64, 1, 2**12, "of a code"),
    "--iterations": (5000, 0, 10**9, "optimizer steps; 0 leaves random weights"),
    "--warm-up": (2000, 0, 10**9, "steps before quantisation"),
    "--cells": (320, 1, 2**16, "16x16 cells a step"),
    "--seed": (0, 0, MAX_SEED, "of weights and crops"),
}


def parse() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=path, metavar="DIR", help="photographs (default: scikit-image's)")
    output = Path("runs/encoder/compact.safetensors")
    add("--output", type=path, metavar="FILE", default=output, help=f"(default: {output})")
    text = f"multiples of 32 (default: {' '.join(map(str, COMPACT))})"
    add("--channels", type=int, nargs=LEVELS, default=COMPACT, metavar="C", help=text)
    for name, (default, *_, text) in WHOLE.items():
        add(name, type=int, metavar="N", default=default, help=f"{text} (default: {default})")
    add("--lr", type=float, default=6e-4, help="step size at its highest (default: 0.0006)")
    text = "mean entropy of the code distributions (default: 2)"
    add("--nats", type=float, default=2.0, help=text)
    add("--resume", action="store_true", help="go on from the checkpoint beside the output")
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Refuse options that no encoder can be trained with."""
    for name, (_, low, high, _) in WHOLE.items():
        value = getattr(args, name[2:].replace("-", "_"))
        check_number(name, value, at_least=low, at_most=high, whole=True)
    for channels in args.channels:
        check_number("--channels", channels, at_least=32, at_most=2**12, whole=True)
    check_number("--lr", args.lr, above=0, at_most=1)
    check_number("--nats", args.nats, above=0, below=math.log(args.codes))
    if args.output.suffix != ".safetensors":
        raise ValueError(f"got --output {args.output}; expected a file *.safetensors")
    check_folder("--output", args.output.parent, (args.output.name, checkpoint_of(args).name))


def checkpoint_of(args: argparse.Namespace) -> Path:
    """The file that --resume goes on from."""
    return args.output.with_suffix(".checkpoint.pt")


def load_images(folder: Path | None) -> list[np.ndarray]:
    """Photographs of a folder that are large enough, or scikit-image's own."""
    if folder is None:
        return list(photographs("train").values())
    images = [read_image(path) for path in list_images(folder)]
    large = [image for image in images if min(image.shape[:2]) >= TEST_CROP]
    if len(large) < 2:
        size = f"{TEST_CROP}x{TEST_CROP}"
        raise ValueError(f"{folder}: {len(large)} images of {size} or more; expected two at least")
    return large


def random_crops(images: list[np.ndarray], cells: int, rng: np.random.Generator) -> Tensor:
    """A batch of random flipped crops of one size, about `cells` in all, values in [-1, 1]."""
    size = int(rng.choice(CROPS))
    batch = max(1, round(cells * (CELL / size) ** 2))
    crops = []
    for index in rng.integers(len(images), size=batch):
        image = images[index]
        top, left = (rng.integers(side - size + 1) for side in image.shape[:2])
        crop = image[top : top + size, left : left + size]
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    x = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.to(DEVICE, memory_format=torch.channels_last)


def tiles(images: list[np.ndarray]) -> Iterator[Tensor]:
    """Each image as (n, 3, TEST_CROP, TEST_CROP) in [-1, 1], its rest at two sides left out."""
    for image in images:
        x = torch.tensor(image, device=DEVICE).permute(2, 0, 1).float() / 127.5 - 1
        x = x.unfold(1, TEST_CROP, TEST_CROP).unfold(2, TEST_CROP, TEST_CROP)
        yield x.permute(1, 2, 0, 3, 4).reshape(-1, 3, TEST_CROP, TEST_CROP)


def train(
    model: Autoencoder,
    images: list[np.ndarray],
    held_out: list[np.ndarray],
    args: argparse.Namespace,
) -> None:
    """Train encoder, decoder and codebook together; every step's numbers follow from its number."""
    optimizer = torch.optim.AdamW(model.trained(), args.lr, betas=(0.9, 0.99))
    length = max(LEAST_CYCLE, args.iterations)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=length, pct_start=max(0.05, 2 / length)
    )
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    checkpoint = checkpoint_of(args)
    unsettled = ("data", "output", "resume")
    settings = {name: value for name, value in vars(args).items() if name not in unsettled}
    first = 0
    if not args.resume and checkpoint.exists():
        put_aside(checkpoint)
    elif args.resume and not checkpoint.exists():
        print(f"no checkpoint in {checkpoint.parent}: starting anew", flush=True)
    elif args.resume:
        with refusing():
            content = load(checkpoint, settings)
        first = content["step"]
        for name, part in parts.items():
            part.load_state_dict(content[name])
    for step in tqdm(range(first, args.iterations), disable=not sys.stderr.isatty()):
        rng = np.random.default_rng((args.seed, step))
        torch.manual_seed(int(rng.integers(2**63)))
        if step == args.warm_up:
            begin_codebook(model, images, rng)
        x = random_crops(images, args.cells, rng)
        loss = model.loss(x, quantised=step >= args.warm_up)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.trained(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % min(REPORT_EVERY, max(1, args.iterations // 2)) == 0:
            model.copy_codebook()
            report = model.evaluate(tiles(held_out))
            print(json.dumps({"step": step + 1, **report}), flush=True)
            states = {name: part.state_dict() for name, part in parts.items()}
            save(checkpoint, settings, {"step": step + 1, **states})


def begin_codebook(model: Autoencoder, images: list[np.ndarray], rng: np.random.Generator) -> None:
    """From many latents at once."""
    model.begin_codebook(random_crops(images, FIRST_CELLS, rng) for _ in range(FIRST_BATCHES))


def build(args: argparse.Namespace) -> Autoencoder:
    """The model to train, with weights drawn from the seed."""
    architecture = Architecture(
        stem=args.channels[0],
        channels=tuple(args.channels),
        blocks=args.blocks,
        attention=(False, False, False, False, True),
        z_channels=args.code_channels,
        code_channels=args.code_channels,
        codes=args.codes,
    )
    torch.manual_seed(args.seed)
    return Autoencoder(architecture).to(DEVICE, memory_format=torch.channels_last)


def run(args: argparse.Namespace) -> None:
    """Check, train, measure and write."""
    start = time.time()
    with refusing():
        check(args)
        images = load_images(args.data)
        model = build(args)
        lock = claim(args.output.with_name(f".{args.output.name}.lock"))
    held_out = images[::HELD_OUT_EVERY]
    train_images = [image for i, image in enumerate(images) if i % HELD_OUT_EVERY]
    train(model, train_images, held_out, args)
    if args.iterations <= args.warm_up:
        begin_codebook(model, train_images, np.random.default_rng(args.seed))
    model.finish_codebook(tiles(train_images[::HELD_OUT_EVERY]), args.nats)
    facts = {
        "train_images": len(train_images),
        "held_out_images": len(held_out),
        "iterations": args.iterations,
        "seed": args.seed,
        **model.evaluate(tiles(held_out)),
    }
    tensors = {name: tensor.half() for name, tensor in model.network.state_dict().items()}
    write_safetensors(tensors, args.output, **{name: str(value) for name, value in facts.items()})
    lock.release()
    print(json.dumps(facts, indent=1))
    print(f"{args.output}: {args.output.stat().st_size:,} bytes in {time.time() - start:.0f} s")


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""
    return exit_status(lambda: run(parse()))


if __name__ == "__main__":
    sys.exit(main())
