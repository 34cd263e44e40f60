"""The door to PyTorch, which the kernels serve and do not need."""

from __future__ import annotations

from typing import Any

from unetx_kernels.errors import KernelError

__all__ = ["require_torch"]


def require_torch() -> Any:
    """Return the module torch.

    Raises
    ------
    KernelError
        It is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise KernelError("torch is not installed: run pip install 'unetx-opt[train]'") from error
    return torch
