"""What goes wrong on people's machines, tried: what is survived, and what is refused well.

    python -m benchmarks.trust
    python -m benchmarks.trust --only fuzz --minutes 10

- `steps`: many steps of loss and history; memory and time a step stay, the counters are right.
- `kills`: training commands of the examples are killed at random moments and resumed. The student,
  the log and the scores have to be those of an uninterrupted run, bit for bit.
- `files`: an encoder, a student and a checkpoint, cut short at many places and with single bits
  flipped. Their values have to be read as they were, or the file refused by its name.
- `servers`: local ones that never answer, stall, are slow, cut short, or send something else.
- `fuzz`: every reader of files, on files that are damaged at random, for so many minutes.

Refused well means: a ValueError or RuntimeError that names the file, or of a command one line that
begins with "error:" and a code other than 0. Everything else is a failure: another error, a
traceback, a dead or hanging process, much memory, other values in silence.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from PIL import Image
from torch import nn

from benchmarks import common
from benchmarks.common import ROOT
from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator, VQGANEncoder
from dckd_losses.weights import COMPACT, read_checkpoint
from dckd_losses.weights.files import DIGEST, load, write_safetensors
from examples.restoration import networks
from examples.restoration.data.images import read_image
from examples.restoration.training import checkpoint

RESULT = ROOT / "benchmarks" / "results" / "trust.json"
SCRIPTS = {"sr": 8, "deblur": 16, "derain": 16}  # of the examples, with the LQ pixels of a crop
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KILLS_OF_A_RUN = 5
CUTS, FLIPS = 50, 200  # of each file
BATCH = 250  # damaged files that are read before the next reader's turn
BATCH_SECONDS = 120  # after which a reader hangs
MEMORY = 1 << 30  # bytes that a reader of small files may take
GROWTH, SLOWER = 16 << 20, 1.5  # noise in a process's bytes, and in a step's time
SERVERS = ("silent", "stalled", "short", "wrong", "missing")  # besides slow ones
SHOWN = 3  # failures of a row; all are in the JSON
SECONDS = 300  # after which a command hangs


@dataclass
class Row:
    """How often something was tried, and how that ended."""

    what: str
    tried: int = 0
    survived: int = 0
    refused: int = 0
    failed: list[str] = field(default_factory=list)

    def note(self, ending: str, where: str) -> None:
        """Count a try that was "survived" or "refused", or else what went wrong."""
        self.tried += 1
        self.survived += ending == "survived"
        self.refused += ending == "refused"
        if ending not in ("survived", "refused"):
            self.failed.append(f"{where}: {ending}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 1 where something went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    add("--minutes", type=float, default=10, help="of fuzz (default: 10)")
    add("--kills", type=int, default=40, help="(default: 40)")
    add("--steps", type=int, default=20_000, help="(default: 20000)")
    add("--json", type=Path, default=RESULT, help="a table is written beside it")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # processes that are forked have no others
    rows: list[Row] = []
    facts = common.facts("benchmarks.trust", torch.device("cpu"))
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            for row in PARTS[name](args, Path(folder)):
                rows.append(row)
                print(table([row]).splitlines()[2], *row.failed[:SHOWN], sep="\n", flush=True)
        common.write_json(args.json, {**facts, "rows": [asdict(row) for row in rows]})
        head = [f"- {key}: {value}" for key, value in facts.items()]
        failed = [f"- {row.what}, {each}" for row in rows for each in row.failed[:SHOWN]]
        text = "\n".join(["# Trust", "", *head, "", table(rows), "", *failed]).rstrip()
        args.json.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    return int(any(row.failed for row in rows))


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    cells = [
        (row.what, *(f"{n:,}" for n in (row.tried, row.survived, row.refused, len(row.failed))))
        for row in rows
    ]
    return "\n".join(common.grid(("what", "tried", "survived", "refused well", "failed"), cells))


# Steps


def steps(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Train a tiny student; memory and CPU time of the last fifth beside those of the second."""
    count = args.steps
    student = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))
    optimizer = torch.optim.Adam(student.parameters(), 1e-4)
    negatives = NegativeGenerator(HistoryModel(student, interval=100))
    dckd = DCKDLoss(student, "compact", negatives=negatives).attach(optimizer)
    lq, teacher_out = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 16, 16)
    process, memory, times, finite = psutil.Process(), [], [], True
    for _ in range(count):
        start = time.process_time()
        loss = dckd(student(lq), teacher_out, lq)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        finite = finite and bool(loss.isfinite())
        times.append(time.process_time() - start)
        memory.append(process.memory_info().rss)
    early, late = slice(count // 5, 2 * count // 5), slice(4 * count // 5, None)
    growth = max(memory[late]) - max(memory[early])
    slower = statistics.median(times[late]) / statistics.median(times[early])
    counters = [int(negatives.history.iteration), int(negatives.counter)]
    row = Row(f"steps ({growth / 1e6:+.1f} MB, {slower:.2f} times the time)", count)
    if finite and growth < GROWTH and slower < SLOWER and counters == [count] * 2:
        row.survived = count
    else:
        row.failed.append(f"finite: {finite}; counters {counters}")
    yield row


# Kills


def kills(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Each command's runs: killed a few times, then finished and compared."""
    make_images(folder / "images")
    draw, left = random.Random(0), args.kills
    for number, (task, crop) in enumerate(SCRIPTS.items()):
        row, share = Row(f"kills of train_{task}.py"), left // (len(SCRIPTS) - number)
        left -= share
        line = [sys.executable, f"examples/train_{task}.py", "--data", folder / "images"]
        line += ["--val", folder / "images", "--iterations", 200, "--batch-size", 1]
        line += ["--crop", crop, "--resume", "--output"]
        start = time.monotonic()
        expected = results(line, folder / task)
        seconds = time.monotonic() - start
        while row.tried < share:
            killed = []
            for _ in range(min(share - row.tried, KILLS_OF_A_RUN)):
                sent, moment = draw.choice(SIGNALS), draw.uniform(0, seconds)
                code, said = run([*line, folder / "broken"], moment, sent)
                if code is not None:  # it was done before
                    seconds *= 0.8
                    break
                ending = f"...{said[-300:]}" if "Traceback" in said else "survived"
                killed.append((ending, f"{sent.name} after {moment:.2f} s"))
            same = results(line, folder / "broken") == expected and expected[0] == 0
            shutil.rmtree(folder / "broken")
            for ending, where in killed:
                row.note(ending if same else "the run then ended otherwise", where)
        yield row


def results(line: Sequence[Any], folder: Path) -> list[Any]:
    """Finish a run; its code and what it leaves."""
    code = run([*line, folder])[0]
    names = ("student.safetensors", "best.safetensors", "log.json", "metrics.json")
    return [code, *((folder / n).read_bytes() if (folder / n).is_file() else None for n in names)]


def run(
    line: Sequence[Any], limit: float = SECONDS, sent: int = signal.SIGKILL, **environment: str
) -> tuple[int | None, str]:
    """Run a command with one thread; its code, None if it got a signal, and all that it says."""
    with subprocess.Popen(
        list(map(str, line)), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    ) as process:  # fmt: skip
        try:
            said = process.communicate(timeout=limit)[0]
            return process.returncode, said
        except subprocess.TimeoutExpired:
            process.send_signal(sent)
            return None, process.communicate()[0]


def make_images(folder: Path) -> None:
    """Three smooth images of 64x48 pixels."""
    folder.mkdir(parents=True)
    for seed in range(3):
        small = Image.frombytes("RGB", (16, 12), random.Random(seed).randbytes(576))
        small.resize((64, 48), Image.Resampling.BICUBIC).save(folder / f"{seed}.png")


# Files

TENSORS = {
    "encoder.conv_in.weight": torch.linspace(-1, 1, 108).view(4, 3, 3, 3),
    "quantize.embedding.weight": torch.linspace(-1, 1, 48).view(8, 6),
}


class Reader(NamedTuple):
    """Something that is read from a file."""

    name: str  # of the file
    write: Callable[[Path], object]
    read: Callable[[Path], Any]
    # what a file must have for altered values to be told; None where nothing tells them
    told: str | None = ""

    def ending(self, path: Path, expected: Any) -> str:
        """Read a damaged file: "survived", "refused", or what went wrong."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                seen = self.read(path)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            well = isinstance(error, (RuntimeError, ValueError)) and self.name in said
            greedy = "MemoryError" in said or "allocate" in said
            return "refused" if well and not greedy else said[:300]
        told = self.told is not None and self.told.encode() in path.read_bytes()
        return "other values in silence" if told and not same(seen, expected) else "survived"


def same(one: Any, other: Any) -> bool:
    """Whether nested values are equal, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


ENCODER = Reader(
    "compact.safetensors", lambda path: shutil.copy(COMPACT, path),
    lambda path: VQGANEncoder.from_pretrained(path).network.state_dict(),
)  # fmt: skip
STUDENT = Reader(
    "student.safetensors", lambda path: networks.save(networks.build("tiny", 2), path),
    lambda path: networks.load(path).state_dict(),
)  # fmt: skip
CHECKPOINT = Reader(
    "checkpoint.pt", lambda path: checkpoint.save(path, {"seed": 0}, {"dckd": TENSORS, "step": 7}),
    lambda path: checkpoint.load(path, {"seed": 0}),
)  # fmt: skip
READERS = (
    STUDENT,
    CHECKPOINT,
    Reader("encoder.safetensors", partial(write_safetensors, TENSORS), load, DIGEST),
    Reader("weights.pth", partial(torch.save, {"state_dict": TENSORS, "lr": 1}), read_checkpoint),
    Reader(
        "old.pth", partial(torch.save, TENSORS, _use_new_zipfile_serialization=False),
        read_checkpoint, None,
    ),
    *(
        Reader(f"image.{end}", Image.radial_gradient("L").convert("RGB").save, read_image, None)
        for end in ("png", "jpeg", "tiff", "webp", "bmp")
    ),
    Reader(
        "result.json", lambda path: common.write_json(path, {"peak_mb": None, "records": [1.5]}),
        common.read_json, None,
    ),
)  # fmt: skip


def files(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Cuts and flipped bits, evenly spread."""
    for reader in (ENCODER, STUDENT, CHECKPOINT):
        cut, flipped = Row(f"{reader.name}, cut short"), Row(f"{reader.name}, one bit flipped")
        path = folder / reader.name
        reader.write(path)
        data, expected = path.read_bytes(), reader.read(path)
        for place in range(0, len(data), len(data) // CUTS):
            path.write_bytes(data[:place])
            cut.note(reader.ending(path, expected), f"after byte {place}")
        for place in range(0, len(data), len(data) // FLIPS):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            flipped.note(reader.ending(path, expected), f"byte {place}")
        yield from (cut, flipped)


# Servers


def servers(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """A teacher by its URL, and an encoder by its name, each from every kind of server."""
    for side in ("input", "target"):
        make_images(folder / "images" / side)
    torch.save(networks.build("nafnet-student", 1).state_dict(), folder / "teacher.pth")
    teacher = [sys.executable, "examples/evaluate.py", "--task", "deblur", "--data"]
    teacher += [folder / "images", "--backbone", "nafnet-student", "--model"]
    encoder = [sys.executable, "-m", "dckd_losses.weights", "fetch", "vqgan-f16-1024"]
    rows = {what: Row(f"{what} from a bad server") for what in ("teacher", "encoder")}
    with server((folder / "teacher.pth").read_bytes()) as address, ThreadPoolExecutor(4) as pool:

        def fetch(what: str, kind: str) -> None:
            url, home = f"{address}/{kind}", str(folder / f"{what}_{kind}")
            line = encoder if what == "encoder" else [*teacher, f"{url}/x.pth"]
            code, said = run(line, DCKD_HOME=home, HF_HOME=home, HF_ENDPOINT=url)
            well = said.count("error: ") == 1 and "Traceback" not in said and code
            ending = "refused" if well else f"code {code}: {said[-300:]}"
            rows[what].note("survived" if kind == "slow" and code == 0 else ending, kind)

        # two at once from the slow one, of which one waits for the other
        jobs = [("teacher", kind) for kind in ("slow", "slow", *SERVERS)]
        list(pool.map(fetch, *zip(*jobs, *(("encoder", kind) for kind in SERVERS), strict=True)))
    yield from rows.values()


@contextmanager
def server(content: bytes) -> Iterator[str]:
    """A local server's address; a path begins with how it is answered."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind = self.path.split("/")[1]
            if kind == "silent":
                over.wait()
            sent = b"<html>Please sign in</html>" if kind == "wrong" else content
            self.send_response(404 if kind == "missing" else 200)
            for name, text in (("ETag", '"x"'), ("X-Repo-Commit", 40 * "0")):  # the Hub's
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            if self.command == "HEAD":
                return
            for start in range(0, len(sent), 1 << 20):
                self.wfile.write(sent[start : start + (1 << 20)])
                if kind == "short":
                    return
                over.wait({"stalled": None, "slow": 1.0}.get(kind, 0.0))

        do_HEAD = do_GET  # noqa: N815 - http.server's name

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.block_on_close, made.handle_error = False, lambda *_: None  # clients that gave up
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        over.set()
        made.shutdown()


# Fuzz

TOKENS = (b"\0", b"\xff" * 8, b"\xff\xff\xff\x7f", b"-1", b"1e999", b"NaN", b"null", b"{", b"[]")


def fuzz(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Readers take turns, each in a process that may die or hang without ending this one."""
    rows = [Row(f"{reader.name}, damaged at random") for reader in READERS]
    end, batch = time.monotonic() + 60 * args.minutes, 0
    while time.monotonic() < end:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
            try:
                endings = pool.submit(read_damaged, batch, folder).result()
            except BrokenProcessPool:
                endings = ["the process died or hung"]
        for number, ending in enumerate(endings):
            rows[batch % len(READERS)].note(ending, f"batch {batch}, file {number}")
        batch += 1
    yield from rows


def read_damaged(batch: int, folder: Path) -> list[str]:
    """How reading ends of each file of a batch, whose number determines them."""
    signal.alarm(BATCH_SECONDS)  # ends the process
    most = psutil.Process().memory_info().vms + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    reader, draw = READERS[batch % len(READERS)], random.Random(batch)
    path, endings = folder / reader.name, []
    reader.write(path)
    data, expected = path.read_bytes(), reader.read(path)
    for _ in range(BATCH):
        path.write_bytes(damaged(data, draw))
        endings.append(reader.ending(path, expected))
    return endings


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Flip, overwrite, insert, drop, copy or cut; half of the time near the beginning or end."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        size, length = max(1, len(made)), draw.choice((1, 1, 2, 4, 8, 64, 1000))
        near = draw.randrange(min(400, size))
        place = draw.choice((draw.randrange(size), draw.randrange(size), near, size - 1 - near))
        other = draw.randrange(size)
        changed = [
            bytes(byte ^ 1 << draw.randrange(8) for byte in made[place : place + 1]),
            draw.randbytes(length),
            draw.choice(TOKENS),
            made[other : other + length],
            b"",
        ]
        new = draw.choice(changed)
        made[place : place + draw.choice((len(new) or length, len(new) or size, 0))] = new
    return bytes(made)


PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterator[Row]]] = {
    "steps": steps, "kills": kills, "files": files, "servers": servers, "fuzz": fuzz,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
