"""The fused operations as Triton kernels, for CUDA devices.

Importing a module of this package needs `triton`. Everything is computed in float32 from features
in float32, float16 or bfloat16, without waiting for the device.
"""

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
