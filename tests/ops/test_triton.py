"""What the Triton kernels show without a GPU: their arithmetic, and that they compile."""

import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dckd_losses.ops import triton_distances, triton_norm
from dckd_losses.ops.triton_norm import group_norm_silu

try:  # until 3.2
    from triton.backends.compiler import AttrsDescriptor
except ImportError:
    AttrsDescriptor = None

ROOT = Path(__file__).parents[2]
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
HOPPER = GPUTarget("cuda", 90, 32)
MOST_REGISTERS = 128  # four programs of 128 threads on a multiprocessor
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.int32: "*i32",
}


@pytest.mark.parametrize("part", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_equal_their_twins_in_the_interpreter(part):
    """Which takes over where `triton` is imported, so it gets a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", part, "tests/ops/test_triton_kernels.py"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert re.search(r"\d+ passed", run.stdout)


@pytest.fixture
def launches(monkeypatch):
    """Every different launch, which is noted and not carried out: kernel, arguments by name."""
    noted = {}

    def note(kernel, *values, grid, warmup, **named):
        arguments = dict(zip(kernel.arg_names, values, strict=False)) | named
        noted.setdefault((kernel.__name__, str(named)), (kernel, arguments))

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", note)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # not for meta tensors
    return noted


def compiled(kernel, arguments):
    """A launch's kernel for a Hopper GPU, with what a launch tells the compiler."""
    signature, constants, aligned = {}, {}, []
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            aligned.append(i)
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            aligned += [i] if value % 16 == 0 and not parameter.do_not_specialize else []
        else:
            signature[parameter.name] = "fp32"
    if AttrsDescriptor is None:
        attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    else:
        attributes = AttrsDescriptor.from_hints(dict.fromkeys(aligned, 16))
    source = ASTSource(kernel, signature, constants, attributes)
    options = {name: value for name, value in arguments.items() if name not in kernel.arg_names}
    return triton.compile(source, target=HOPPER, options=options)


def resources(cubin, tmp_path):
    """Registers a thread, and bytes of a thread's stack and local memory, where spills go."""
    file = tmp_path / "kernel.cubin"
    file.write_bytes(cubin)
    command = [TOOLS / "cuobjdump", "--dump-resource-usage", file]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL")]


def launch_all(shape, dtype, negatives):
    """Every public operation once, forward and backward, on tensors without memory."""
    like = {"device": "meta", "memory_format": torch.channels_last}
    x = torch.empty(shape, dtype=dtype, requires_grad=True, **like)
    weight, bias = torch.empty(2, shape[1], device="meta")
    for silu in (True, False):
        y = group_norm_silu(x, weight, bias, 32, 1e-6, silu)
        y.backward(torch.empty_like(y))
    student, one = x.detach(), torch.empty((), device="meta")
    code = torch.empty(shape, dtype=torch.int8 if negatives <= 42 else torch.int32, **like)
    others = torch.empty(negatives + 1, *shape, dtype=dtype, device="meta")
    triton_distances.accumulate(student, others, 0, code, torch.empty(2, device="meta"))
    triton_distances.decode(code, one, one, dtype)


@pytest.mark.slow
@pytest.mark.skipif(not (TOOLS / "cuobjdump").exists(), reason="this triton brings no ptxas")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled")
@pytest.mark.parametrize(
    ("shape", "negatives", "dtype"),
    [
        ((16, 128, 192, 192), 5, torch.float32),
        ((16, 128, 192, 192), 5, torch.float16),
        ((16, 256, 48, 48), 5, torch.float16),
        ((1, 512, 12, 12), 43, torch.float32),
        ((1, 512, 12, 12), 43, torch.float16),
        ((3, 96, 35, 5), 1, torch.bfloat16),
    ],
    ids=str,
)
def test_compiles_for_hopper(launches, tmp_path, shape, negatives, dtype):
    launch_all(shape, dtype, negatives)
    names = vars(triton_norm).keys() | vars(triton_distances).keys()
    every = {name for name in names if name.endswith("_kernel")}
    assert {name for name, _ in launches} == every
    for (name, constants), (kernel, arguments) in launches.items():
        result = compiled(kernel, arguments)
        registers, *spilled = resources(result.asm["cubin"], tmp_path)
        print(f"{name}: {registers} registers, {spilled} bytes of stack and local; {constants}")
        assert spilled == [0, 0]
        assert registers <= MOST_REGISTERS
        if shape[0] == 16 and name not in ("statistics_kernel", "decode_kernel"):
            assert "ld.global.v4.b32" in result.asm["ptx"]  # 16 bytes a thread
