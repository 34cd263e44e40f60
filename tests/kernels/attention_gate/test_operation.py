"""The gate as an operation of PyTorch: its rules by PyTorch's own checks, its numbers by the float64 definition."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unetx_kernels.attention_gate import operation, plain, reference
from unetx_kernels.errors import KernelError
from unetx_opt.models import attention as model
from unetx_opt.specs import Gate

torch = pytest.importorskip("torch", reason="the operation is PyTorch's")


def _inputs(*, dtype: Any = None, channels_last: bool = False, residual: bool = True, grad: bool = True) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    depths = (2, 2, 3, 3) if residual else (2, 2, 3)
    made = [torch.randn(2, depth, 5, 7, generator=generator, dtype=torch.float64) for depth in depths]
    return [tensor.to(dtype or torch.float64, memory_format=layout).requires_grad_(grad) for tensor in made]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "added"])
@pytest.mark.parametrize(("window", "dilation"), [(3, 1), (5, 2), (7, 1)])
def test_the_operation_keeps_every_rule_of_pytorch(
    window: int, dilation: int, residual: bool, channels_last: bool
) -> None:
    inputs = _inputs(residual=residual, channels_last=channels_last)
    arguments = (*inputs, *([] if residual else [None]), window, dilation)
    found = torch.library.opcheck(operation.operation(), arguments)
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("window", "dilation"), [(3, 1), (5, 2)])
def test_gradients_are_those_of_finite_differences(window: int, dilation: int) -> None:
    def run(*tensors: Any) -> Any:
        return operation.attend(*tensors, window=window, dilation=dilation)

    assert torch.autograd.gradcheck(run, [tensor[:1] for tensor in _inputs()])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_the_fallback_gives_the_definition_in_every_type_and_layout(dtype: str) -> None:
    kind = getattr(torch, dtype)
    inputs = _inputs(dtype=kind, channels_last=True, grad=False)
    attended = operation.attend(*inputs, window=5)
    assert attended.is_contiguous(memory_format=torch.channels_last)
    theta, phi, values, residual = (tensor.double().numpy() for tensor in inputs)
    expected = reference.neighbourhood_gate(theta, phi, values, 5, residual=residual)
    np.testing.assert_allclose(attended.double().numpy(), expected, atol=8 * torch.finfo(kind).eps)


def test_the_operation_traces_under_torch_export() -> None:
    class Attend(torch.nn.Module):
        def forward(self, theta: Any, phi: Any, values: Any) -> Any:
            return operation.operation()(theta, phi, values, None, 3, 1)

    inputs = tuple(_inputs(residual=False, grad=False))
    program = torch.export.export(Attend(), inputs)
    assert "unetx.attention_gate" in str(program.graph)
    torch.testing.assert_close(program.module()(*inputs), operation.attend(*inputs, window=3))


def test_the_fallback_says_why() -> None:
    assert operation.why_not(torch.zeros(1)) == "the tensor is on cpu, not on an NVIDIA GPU"


def test_plain_operations_are_what_a_recorded_cuda_graph_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation, "_why_not_device", lambda index: None)
    values = SimpleNamespace(is_cuda=True, dtype=torch.float16, device=SimpleNamespace(index=0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert operation.why_not(values) is None
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert "CUDA graph is being recorded" in str(operation.why_not(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(window=4), "window is 4"),
        (lambda t: t.update(dilation=0), "dilation 0"),
        (lambda t: t.update(phi=t["phi"][:, :1]), r"expected \(N, D, H, W\) twice"),
        (lambda t: t.update(values=t["values"].float()), "floating point of one type"),
    ],
    ids=["window", "dilation", "shapes", "types"],
)
def test_arguments_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    theta, phi, values = _inputs(residual=False, grad=False)
    arguments = {"theta": theta, "phi": phi, "values": values, "window": 3, "dilation": 1}
    change(arguments)
    with pytest.raises(KernelError, match=message):
        operation.attend(**arguments)


def test_the_model_gives_the_same_through_the_operation_with_a_feigned_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # There is no GPU here: the model is told that there is one, and the operation falls back.
    assert Gate.NEIGHBOURHOOD in model.GATES
    gate = model.NeighbourhoodGate(8, 2, 5).double()
    skip = torch.randn(1, 8, 6, 9, dtype=torch.float64, requires_grad=True)
    by_shifts = gate(skip, skip)
    (gradient,) = torch.autograd.grad(by_shifts.square().sum(), skip)
    monkeypatch.setattr(operation, "why_not", lambda values: None)
    called = []
    original = operation.attend

    def attend(*tensors: Any, **options: Any) -> Any:
        called.append(tensors)
        monkeypatch.undo()
        return original(*tensors, **options)

    monkeypatch.setattr(operation, "attend", attend)
    fused = gate(skip, skip)
    assert len(called) == 1
    torch.testing.assert_close(fused, by_shifts)
    torch.testing.assert_close(torch.autograd.grad(fused.square().sum(), skip)[0], gradient)


def test_importing_the_operation_imports_no_torch() -> None:
    code = "import sys, unetx_kernels.attention_gate.operation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class _Kernels:
    """What the kernels compute, for tensors that stay on the processor."""

    def neighbourhood(
        self, inputs: Any, out: Any, window: int, *, dilation: int = 1, residual: Any = None, stream: Any = None
    ) -> None:
        assert stream is None
        out.copy_(plain.attend_by_taps(*inputs, residual, window, dilation))

    def gradients(
        self, inputs: Any, gradient: Any, outputs: Any, scratch: Any, window: int, *, dilation: int = 1
    ) -> None:
        assert [tuple(one.shape) for one in scratch] == [(2, 1, 5, 7)] * 2
        for out, found in zip(outputs, plain.attend_gradients(inputs, gradient, window, dilation), strict=True):
            out.copy_(found)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_the_kernels_get_dense_tensors_of_one_layout_with_feigned_kernels(
    channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def device_array(tensor: Any) -> Any:
        assert not tensor.requires_grad  # such a tensor gives nobody its pointer
        assert tensor.shape[1] == 1 or tensor.is_contiguous(memory_format=layout)
        return tensor

    expected = _inputs(channels_last=channels_last)
    inputs = _inputs(channels_last=channels_last)
    gradient = torch.ones(2, 3, 5, 7, dtype=torch.float64)
    wanted = torch.autograd.grad(operation.attend(*expected, window=3), expected, gradient)
    monkeypatch.setattr(operation, "why_not", lambda values: None)
    monkeypatch.setattr(operation.driver, "device_array", device_array)
    monkeypatch.setattr(operation, "_kernels", lambda values: contextlib.nullcontext(_Kernels()))
    # The other layout and a view with gaps among the inputs are made dense on the way.
    mixed = [inputs[0].contiguous(), inputs[1], inputs[2], inputs[3]]
    found = torch.autograd.grad(operation.attend(*mixed, window=3), inputs, gradient)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
