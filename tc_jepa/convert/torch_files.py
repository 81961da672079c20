"""Files that torch.save wrote, read without running what is in them. The one place that imports torch."""

from collections.abc import Mapping
from pathlib import Path
import re
from typing import Any
import warnings
import zipfile

import numpy as np

from tc_jepa.errors import UserError


def load(path: Path) -> dict[str, Any]:
    """The dict that a file holds, tensors mapped into memory where its format allows it. torch is an optional extra.

    Through torch's weights_only reader: a file that holds more than tensors and plain values is refused.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(f"reading {path} takes PyTorch, which is not installed: pip install 'torch>=2.6'") from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):  # CVE-2025-32434
        raise UserError(f"PyTorch {torch.__version__} reads pickles unsafely: pip install 'torch>=2.6'")
    if not path.is_file():
        raise UserError(f"{path} is no file; give one that torch.save wrote")
    try:
        with warnings.catch_warnings(action="ignore"):
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises all kinds for damaged files
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        if blocked:
            raise UserError(
                f"{path} is not opened: beside tensors it asks for {blocked[1]}, which could run code"
            ) from error
        raise UserError(f"{path} is damaged, cut short or not PyTorch's; download it anew") from error
    if not isinstance(held, dict):
        raise UserError(f"{path} holds a {type(held).__name__}, not a dict of tensors")
    return held


def arrays(tensors: Any, where: str) -> dict[str, np.ndarray]:
    """A state dict's tensors as float32 arrays; those that are float32 already share their memory."""
    import torch

    if not isinstance(tensors, Mapping):
        raise UserError(f"{where} holds a {type(tensors).__name__}, not a dict of tensors")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise UserError(f"{where}: {name!r} is no tensor of floating point numbers")
    return {name: tensor.detach().to(torch.float32).numpy() for name, tensor in tensors.items()}
