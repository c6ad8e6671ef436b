"""A student as ONNX, to be deployed; held against itself before it is believed."""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

SIZES = ((64, 64), (48, 80))  # two, so that a fixed size would be seen
TOLERANCE = 1e-5  # of values in [0, 1]


def export_onnx(model: nn.Module, path: Path) -> float:
    """Write a network for images of any number and size, and run the file.

    The input `lq` is (B, 3, H, W) float32 in [0, 1], the output `restored`; both sizes and the
    batch may vary.

    Returns:
        The largest difference between the file's output and the network's.

    Raises:
        RuntimeError: onnx, onnxscript or onnxruntime is missing, the network cannot be exported, or
            the file computes something else. No file is left then.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise RuntimeError(
            f"ONNX export needs {error.name}: pip install onnx onnxscript onnxruntime"
        ) from error
    model = model.cpu().float().eval()
    lq = torch.rand(2, 3, *SIZES[0])
    dims = {0: "batch", 2: "height", 3: "width"}
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (lq,),
                partial,
                input_names=["lq"],
                output_names=["restored"],
                dynamic_shapes=({i: torch.export.Dim.DYNAMIC for i in dims},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        distances = []
        for batch, (height, width) in enumerate(SIZES, start=1):
            lq = torch.rand(batch, 3, height, width)
            with torch.no_grad():
                expected = model(lq.clone()).numpy()
            (seen,) = session.run(None, {"lq": lq.numpy()})
            distances.append(np.abs(seen - expected).max().item())
        if not max(distances) < TOLERANCE:
            raise ValueError(f"its output differs by {max(distances):.1e}")
        partial.replace(path)
    except Exception as error:  # the exporter raises many kinds
        reason = str(error.__cause__ or error).strip().splitlines()
        raise RuntimeError(
            f"{path}: this network cannot be had as ONNX for all sizes: {(reason or ['?'])[0]}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return max(distances)
