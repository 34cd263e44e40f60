"""The benchmark of the kernels where there is no GPU: its command, its verdicts, and its peers on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from unetx_bench import kernels
from unetx_bench.kernel_peers import PEERS, GateInputs
from unetx_kernels.attention_gate import reference

torch = pytest.importorskip("torch", reason="the peers are PyTorch's")

SMALL, LARGE = kernels.TIMED[0][0], kernels.TIMED[1][0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_refuses_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(kernels.main, ["-o", str(tmp_path / "results"), "--check-only"])
    assert done.exit_code == 1
    assert done.output == (
        "Error: not measured: this torch sees no NVIDIA GPU: use a GPU host and a CUDA build of torch\n"
    )
    assert not (tmp_path / "results").exists()


def test_the_command_needs_a_folder(tmp_path: Path) -> None:
    assert CliRunner().invoke(kernels.main, []).exit_code == 2
    (tmp_path / "file").touch()
    assert CliRunner().invoke(kernels.main, ["-o", str(tmp_path / "file")]).exit_code == 2


@pytest.mark.parametrize("name", list(PEERS))
def test_every_peer_computes_the_gate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiled code takes a minute; what is compiled is run as it stands.
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    generator = torch.Generator().manual_seed(0)
    theta, phi, values = (torch.randn(1, depth, 8, 16, generator=generator) for depth in (16, 16, 32))
    inputs = GateInputs(theta, phi, values, 3)
    found = PEERS[name](inputs)(*inputs.tensors)
    expected = reference.neighbourhood_gate(theta.numpy(), phi.numpy(), values.numpy(), 3)
    assert abs(found.numpy() - expected).max() < 1e-5


def _row(name: str, shape: Any, milliseconds: float, **more: Any) -> dict[str, Any]:
    fields = {
        "name": name,
        "what": "forward",
        "shape": shape,
        "window": 5,
        "bytes": 600,
        "samples_ms": [milliseconds],
    }
    return fields | more


def test_verdicts_hold_medians_against_their_bounds() -> None:
    rows = [
        _row("fused", SMALL, 1.0, extra_bytes=2 * 64 * 256 * 256),
        _row("unfold", SMALL, 6.0),
        _row("torch.compile of unfold", SMALL, 2.0),
        _row("torch.compile of plain operations", SMALL, 1.2),
        {"name": "fused", "what": "forward", "shape": LARGE, "window": 5, "bytes": 600, "why_not": "no memory"},
    ]
    copies = [{"bytes": 2 * kernels.COPY_BYTES, "samples_ms": [1.0 * 2**21]}, {"bytes": 600, "samples_ms": [0.5]}]
    verdicts = kernels.judge(rows, copies, {"samples_ms": [2.0]})
    assert [(row["value"], row["met"]) for row in verdicts] == [
        (6.0, True),
        (1.2, False),
        (600 / 1024, False),
        (0.5, False),
        (1.0, True),
        *[(None, None)] * 5,
        (2.0, False),
    ]
