"""The neighbourhood gate as an operation of PyTorch, `unetx::attention_gate`, that can be trained through.

On a GPU that the kernels can use it is the fused kernel; anywhere else it is plain PyTorch. `why_not` says which.
Torch is imported when the operation is first called; nothing is registered before.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from unetx_kernels import driver
from unetx_kernels.attention_gate import plain
from unetx_kernels.attention_gate.launch import GateKernels
from unetx_kernels.attention_gate.reference import WINDOWS
from unetx_kernels.binaries import RELEASED, default_cache, why_not_compile
from unetx_kernels.errors import KernelError
from unetx_kernels.optional import require_torch

if TYPE_CHECKING:
    import torch

__all__ = ["NAME", "attend", "operation", "why_not"]

NAME: Final = "unetx::attention_gate"
_SCHEMA: Final = "(Tensor theta, Tensor phi, Tensor values, Tensor? residual, int window, int dilation) -> Tensor"
_BACKWARD_SCHEMA: Final = (
    "(Tensor theta, Tensor phi, Tensor values, Tensor gradient, int window, int dilation) -> (Tensor, Tensor, Tensor)"
)
_LOCK: Final = threading.Lock()


def attend(
    theta: torch.Tensor,
    phi: torch.Tensor,
    values: torch.Tensor,
    residual: torch.Tensor | None = None,
    *,
    window: int,
    dilation: int = 1,
) -> torch.Tensor:
    """Attend from every pixel to its neighbourhood; `reference.neighbourhood_gate` defines it.

    Parameters
    ----------
    theta, phi : torch.Tensor
        (N, D, H, W), floating point.
    values : torch.Tensor
        (N, C, H, W), of the same type.
    residual : torch.Tensor or None
        (N, C, H, W), added to the result.
    window, dilation : int
        3, 5 or 7, and 1 or more.

    Returns
    -------
    torch.Tensor
        (N, C, H, W) in the layout of `values`; gradients reach every tensor argument, once.

    Raises
    ------
    KernelError
        Shapes or types do not fit one another, or window or dilation is out of range.
    """
    attended: torch.Tensor = operation()(theta, phi, values, residual, window, dilation)
    return attended


def why_not(values: torch.Tensor) -> str | None:
    """Return why a tensor is attended by plain PyTorch, or None where the kernel takes it."""
    pytorch = require_torch()

    if not values.is_cuda:
        return f"the tensor is on {values.device}, not on an NVIDIA GPU"
    if values.dtype not in (pytorch.float32, pytorch.float16):
        return f"the tensor is {values.dtype}, the kernels take float32 and float16"
    if pytorch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being recorded on a stream of PyTorch's, where pycuda's kernels cannot run"
    return _why_not_device(values.device.index)


def operation() -> Any:
    """Register the operation with PyTorch, once, and return it."""
    with _LOCK:  # PyTorch refuses a second registration
        return _registered()


@functools.cache
def _registered() -> Any:
    pytorch = require_torch()
    forward = pytorch.library.custom_op(NAME, _forward, mutates_args=(), schema=_SCHEMA)
    forward.register_fake(_fake_forward)
    backward = pytorch.library.custom_op(f"{NAME}_backward", _backward, mutates_args=(), schema=_BACKWARD_SCHEMA)
    backward.register_fake(_fake_backward)
    forward.register_autograd(functools.partial(_differentiate, backward), setup_context=_remember)
    return forward


def _forward(
    theta: torch.Tensor,
    phi: torch.Tensor,
    values: torch.Tensor,
    residual: torch.Tensor | None,
    window: int,
    dilation: int,
) -> torch.Tensor:
    _check((theta, phi, values), residual, window, dilation)
    if why_not(values) is not None:
        attended = plain.attend_by_taps(theta, phi, values, residual, window, dilation)
        return _fresh(attended, values)
    pytorch = require_torch()

    theta, phi, near = _dense(theta, phi, values)
    added = None if residual is None else _dense(residual, like=values)[0]
    out: torch.Tensor = pytorch.empty_like(near)
    with _kernels(values) as kernels:
        inputs = (driver.device_array(theta), driver.device_array(phi), driver.device_array(near))
        extra = None if added is None else driver.device_array(added)
        kernels.neighbourhood(inputs, driver.device_array(out), window, dilation=dilation, residual=extra)
    return out


def _backward(
    theta: torch.Tensor,
    phi: torch.Tensor,
    values: torch.Tensor,
    gradient: torch.Tensor,
    window: int,
    dilation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check((theta, phi, values), gradient, window, dilation)
    if why_not(values) is not None:
        found = plain.attend_gradients((theta, phi, values), gradient, window, dilation)
        of_theta, of_phi, of_values = (_fresh(tensor, values) for tensor in found)
        return of_theta, of_phi, of_values
    pytorch = require_torch()

    tensors = _dense(theta, phi, values, gradient, like=values)
    outputs = tuple(pytorch.empty_like(tensor) for tensor in tensors[:3])
    images, _, height, width = values.shape
    scratch = [pytorch.empty(images, 1, height, width, device=values.device) for _ in range(2)]
    with _kernels(values) as kernels:
        theta_, phi_, values_, gradient_ = map(driver.device_array, tensors)
        grad_theta, grad_phi, grad_values = map(driver.device_array, outputs)
        log_sums, deltas = map(driver.device_array, scratch)
        kernels.gradients(
            (theta_, phi_, values_),
            gradient_,
            (grad_theta, grad_phi, grad_values),
            (log_sums, deltas),
            window,
            dilation=dilation,
        )
    return outputs[0], outputs[1], outputs[2]


def _fake_forward(
    theta: torch.Tensor,
    phi: torch.Tensor,
    values: torch.Tensor,
    residual: torch.Tensor | None,
    window: int,
    dilation: int,
) -> torch.Tensor:
    _check((theta, phi, values), residual, window, dilation)
    return _empty(values, values)


def _fake_backward(
    theta: torch.Tensor,
    phi: torch.Tensor,
    values: torch.Tensor,
    gradient: torch.Tensor,
    window: int,
    dilation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    del gradient, window, dilation
    return _empty(theta, values), _empty(phi, values), _empty(values, values)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    del output
    theta, phi, values, residual, window, dilation = inputs
    ctx.save_for_backward(theta, phi, values)
    ctx.window, ctx.dilation, ctx.has_residual = window, dilation, residual is not None


def _differentiate(backward: Any, ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    of_theta, of_phi, of_values = backward(*ctx.saved_tensors, gradient, ctx.window, ctx.dilation)
    return of_theta, of_phi, of_values, gradient if ctx.has_residual else None, None, None


def _check(
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    like_values: torch.Tensor | None,
    window: int,
    dilation: int,
) -> None:
    theta, phi, values = inputs
    given = [theta, phi, values, *([] if like_values is None else [like_values])]
    fits = (
        all(tensor.ndim == 4 for tensor in given)
        and theta.shape == phi.shape
        and (theta.shape[0], *theta.shape[2:]) == (values.shape[0], *values.shape[2:])
        and (like_values is None or like_values.shape == values.shape)
        and len({(tensor.dtype, tensor.device) for tensor in given}) == 1
        and values.dtype.is_floating_point
    )
    if not fits:
        listed = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}" for tensor in given)
        raise KernelError(
            f"{NAME} got {listed}; expected (N, D, H, W) twice and (N, C, H, W), floating point of one "
            "type, on one device"
        )
    if window not in WINDOWS or dilation < 1:
        raise KernelError(f"window is {window} and dilation {dilation}, expected one of {WINDOWS} and at least 1")


def _layout(values: torch.Tensor) -> Any:
    pytorch = require_torch()
    last = values.is_contiguous(memory_format=pytorch.channels_last) and not values.is_contiguous()
    return pytorch.channels_last if last else pytorch.contiguous_format


def _empty(shaped_as: torch.Tensor, laid_out_as: torch.Tensor) -> torch.Tensor:
    pytorch = require_torch()

    empty: torch.Tensor = pytorch.empty_like(shaped_as, memory_format=_layout(laid_out_as))
    return empty


def _dense(*tensors: torch.Tensor, like: torch.Tensor | None = None) -> list[torch.Tensor]:
    layout = _layout(tensors[-1] if like is None else like)
    # A tensor that asks for a gradient gives nobody its pointer.
    return [tensor.detach().contiguous(memory_format=layout) for tensor in tensors]


def _fresh(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    # An output may be none of the inputs, which an addition of nothing would give.
    return tensor.contiguous(memory_format=_layout(like)).clone()


@functools.cache
def _why_not_device(index: int) -> str | None:
    reason = driver.why_not(index)
    if reason is None and not RELEASED.is_dir():
        reason = why_not_compile()
    if reason is not None:
        return reason
    try:
        _opened(index)
    except KernelError as error:
        return str(error)
    return None


@functools.cache
def _opened(index: int) -> GateKernels:
    return GateKernels(driver.keep_context(index), default_cache())


@contextlib.contextmanager
def _kernels(values: torch.Tensor) -> Iterator[GateKernels]:
    """Open the kernels; what is started inside runs in the order of PyTorch's current stream."""
    pytorch = require_torch()

    device = values.device
    with pytorch.cuda.device(device):
        current, default = pytorch.cuda.current_stream(device), pytorch.cuda.default_stream(device)
        # pycuda takes no stream of another package, so the kernels run on the default stream between two waits.
        if current != default:
            default.wait_stream(current)
        kernels = _opened(device.index)
        # PyTorch's threads, of gradients above all, need not have it current.
        with kernels.gpu.current():
            yield kernels
        if current != default:
            current.wait_stream(default)
