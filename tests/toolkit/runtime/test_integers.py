"""Which CPUs take an 8-bit engine."""

from __future__ import annotations

import pytest

from unetx_opt.runtime.sessions.table import SESSIONS
from unetx_opt.specs import EngineRecord, Host

PACKAGES = {"openvino": "2026.4", "onnxruntime": "1.32"}


def host(machine: str, *features: str) -> Host:
    return Host("Linux", machine, frozenset(features), PACKAGES, ("CPUExecutionProvider",))


def record(target: str, **layers: str) -> EngineRecord:
    return EngineRecord(target, ("model",), layers=layers)


@pytest.mark.parametrize("target", ["openvino-cpu", "onnxruntime-cpu"])
@pytest.mark.parametrize(
    ("machine", "runs"),
    [
        (host("x86_64", "sse2", "avx2"), False),
        (host("x86_64", "sse2", "avx512f", "avx512bw"), False),
        (host("x86_64", "sse2", "avx2", "avx_vnni"), True),
        (host("x86_64", "sse2", "avx512f", "avx512_vnni"), True),
        (host("x86_64"), True),
        (host("AMD64", "bf16"), True),
        (host("aarch64", "asimd"), True),
    ],
    ids=["avx2", "avx512 without vnni", "avx vnni", "avx512 vnni", "unknown", "known in part", "not x86"],
)
def test_an_8_bit_engine_runs_where_products_do_not_saturate(target: str, machine: Host, runs: bool) -> None:
    reason = SESSIONS[target].why_not(machine, record(target, conv="int8", head="float32"))
    assert (reason is None) == runs
    assert reason is None or "saturate on a CPU without VNNI" in reason


@pytest.mark.parametrize("target", ["openvino-cpu", "onnxruntime-cpu"])
def test_a_float_engine_asks_for_no_integer_instructions(target: str) -> None:
    assert SESSIONS[target].why_not(host("x86_64", "sse2", "avx2"), record(target, conv="float32")) is None
    assert SESSIONS[target].why_not(host("x86_64", "sse2", "avx2")) is None
