"""The builder process when it breaks: real processes, with a stand-in where a break has to be made."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unetx_exporters.tensorrt import process
from unetx_exporters.tensorrt.builder_process import RESULT_NAME, main, order_from_json, order_to_json
from unetx_exporters.tensorrt.plan import PlanOrder
from unetx_exporters.tensorrt.process import BuilderLimits, builder_environment, run_builder
from unetx_opt.errors import ExportError

ORDER = PlanOrder("tensorrt_rtx", "graph.onnx", "engine.plan", 4, ("8.6",))
LIMITS = BuilderLimits(timeout_s=60, memory_mib=8192)


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


def test_an_order_survives_the_way_to_the_process() -> None:
    order = PlanOrder("tensorrt", "g", "p", 2, (), "ampere_plus", "cache")
    assert order_from_json(order_to_json(order)) == order
    assert order_from_json(order_to_json(ORDER)) == ORDER


def test_a_process_that_is_done_gives_its_result(tmp_path: Path) -> None:
    result = {"version": "1", "seconds": 0.5, "reports": [["log", "x"]]}
    done = run_builder(ORDER, tmp_path, LIMITS, python(f"open({RESULT_NAME!r}, 'w').write({json.dumps(result)!r})"))
    assert (done.version, done.seconds, done.reports) == ("1", 0.5, (("log", "x"),))


def test_a_refusal_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^it cannot be done$"):
        run_builder(
            ORDER,
            tmp_path,
            LIMITS,
            python(f"open({RESULT_NAME!r}, 'w').write('{{\"error\": \"it cannot be done\"}}')"),
        )


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_process_that_a_signal_ends_is_an_error_with_its_last_word(name: str, tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
print("loading")
print("error: something\\nnoise", file=sys.stderr, flush=True)
os.kill(os.getpid(), signal.{name})
"""
    with pytest.raises(ExportError, match=f"was ended by {name}; the last it said: something;") as caught:
        run_builder(ORDER, tmp_path, LIMITS, python(program))
    assert "\n" not in str(caught.value)


def test_a_process_that_leaves_no_result_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="ended with code 7; the last it said: good bye"):
        run_builder(ORDER, tmp_path, LIMITS, python("import sys; print('good bye'); sys.exit(7)"))


def test_a_result_that_was_cut_off_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="ended with code 0; it said nothing"):
        run_builder(ORDER, tmp_path, LIMITS, python(f"open({RESULT_NAME!r}, 'w').write('{{\"ver')"))


def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ExportError, match=r"was ended after 0\.3 s: raise the option tensorrt_timeout_s"):
        run_builder(ORDER, tmp_path, BuilderLimits(0.3, 8192), python("import time; time.sleep(60)"))
    assert time.monotonic() - started < 20


@pytest.mark.skipif(sys.platform not in ("linux", "win32"), reason="memory of a process is read on Linux and Windows")
def test_a_process_that_grows_too_large_is_ended(tmp_path: Path) -> None:
    program = "import time; block = b'x' * 200_000_000; time.sleep(60)"
    with pytest.raises(ExportError, match="was ended at 100 MiB of memory: raise the option tensorrt_memory_mib"):
        run_builder(ORDER, tmp_path, BuilderLimits(60, 100), python(program))


def test_no_process_is_left_where_waiting_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = []

    def interrupt(running: Any, *_: Any) -> None:
        pids.append(running.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_builder(ORDER, tmp_path, LIMITS, python("import time; time.sleep(60)"))
    if os.name != "nt":
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_real_builder_that_is_killed_from_outside_is_an_error(
    tmp_path: Path, tiny_unet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "graph.onnx").write_bytes(tiny_unet().SerializeToString())
    wait = process._wait

    def kill_soon(running: Any, *rest: Any) -> Any:
        threading.Timer(0.05, running.send_signal, (signal.SIGKILL,)).start()
        return wait(running, *rest)

    monkeypatch.setattr(process, "_wait", kill_soon)
    with pytest.raises(ExportError, match="was ended by SIGKILL"):
        run_builder(ORDER, tmp_path, LIMITS)


def test_the_environment_keeps_what_drivers_need_and_little_else() -> None:
    given = {"PATH": "p", "LD_LIBRARY_PATH": "l", "CUDA_VISIBLE_DEVICES": "0", "SECRET": "s", "PYTHONPATH": "mine"}
    kept = builder_environment(given)
    assert kept.keys() == {"PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "PYTHONHASHSEED"}
    first, *roots = kept["PYTHONPATH"].split(os.pathsep)
    assert first == "mine"
    assert all(
        (Path(root) / name).is_dir() for root, name in zip(roots, ("unetx_exporters", "unetx_opt"), strict=True)
    )


def test_a_missing_package_is_a_refusal_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    Path("order.json").write_text(order_to_json(PlanOrder("tensorrt", "g", "p", 1)), encoding="utf-8")
    assert main(["--fixed-addresses"]) == 1
    assert "unetx-opt[tensorrt]" in json.loads(Path(RESULT_NAME).read_text(encoding="utf-8"))["error"]
