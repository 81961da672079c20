"""Reading files of torch.save without running code in them. The only module that imports torch, an optional extra."""

from collections.abc import Mapping
from pathlib import Path
import re
from typing import Any
import warnings
import zipfile

import numpy as np

from tc_jepa.errors import UserError
from tc_jepa.storage.reading import lfs_reason_of


def load(path: Path) -> dict[str, Any]:
    """Returns the dict in a file, its tensors mapped into memory where the format allows it.

    It is read by torch's weights_only reader. Raises UserError for a file with anything but tensors and plain values,
    for a damaged file, and where torch is missing or older than 2.6 (whose reader is unsafe, CVE-2025-32434).
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(f"reading {path} requires PyTorch, which is not installed: pip install 'torch>=2.6'") from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise UserError(f"PyTorch {torch.__version__} reads pickles unsafely: pip install 'torch>=2.6'")
    if not path.is_file():
        raise UserError(f"{path} is not a file; give one that torch.save wrote")
    try:
        with warnings.catch_warnings(action="ignore"):
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises all kinds for damaged files
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        if blocked:
            contains = f"besides tensors it contains {blocked[1]}, which could run code"
            raise UserError(f"{path} is not opened: {contains}") from error
        reason = lfs_reason_of(path) or "download it again"
        raise UserError(f"{path} is damaged, truncated or not a PyTorch file; {reason}") from error
    if not isinstance(held, dict):
        raise UserError(f"{path} holds a {type(held).__name__}, not a dict of tensors")
    return held


def arrays(tensors: Any, where: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict as float32 arrays; float32 tensors share their memory with the result.

    Raises UserError, starting with `where`, for anything but a dict of floating point tensors.
    """
    import torch

    if not isinstance(tensors, Mapping):
        raise UserError(f"{where} holds a {type(tensors).__name__}, not a dict of tensors")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise UserError(f"{where}: {name!r} is not a tensor of floating point numbers")
    return {name: tensor.detach().to(torch.float32).numpy() for name, tensor in tensors.items()}
