"""TensorRT and TensorRT-RTX engines: built in a process of their own, checked, and read back."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unetx_exporters.quantize.share import require_int8
from unetx_exporters.request import BuildRequest
from unetx_exporters.tensorrt.attention_plugin import write_plugin_graph
from unetx_exporters.tensorrt.attest import arithmetic_nodes, attest_layers, read_layers
from unetx_exporters.tensorrt.header import (
    CAPABILITY_BITS,
    HEADER_BYTES,
    check_capabilities,
    check_header,
    parse_header,
)
from unetx_exporters.tensorrt.options import TensorRTOptions, read_options
from unetx_exporters.tensorrt.plan import PlanOrder
from unetx_exporters.tensorrt.process import BuilderResult, run_builder
from unetx_opt.errors import ExportError
from unetx_opt.files import staged_file, write_file
from unetx_opt.optional import require
from unetx_opt.runtime.cuda_device import probe_cuda_device
from unetx_opt.runtime.sessions.tensorrt import MODULES, version_numbers
from unetx_opt.specs import EngineRecord, Host, Precision

__all__ = [
    "build_tensorrt",
    "build_tensorrt_rtx",
    "judged_graph",
    "why_not_build_tensorrt",
    "why_not_build_tensorrt_rtx",
]

_TURING: Final = "7.5"
#: What an engine of the level "ampere_plus" runs on: every discrete GPU from compute capability 8.0 on.
_AMPERE_PLUS: Final = ("8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")
_OLDEST: Final = {"tensorrt": "10.16", "tensorrt-rtx": "1.7"}

_GRAPH_NAME: Final = "graph.onnx"
_PLAN_NAME: Final = "engine.plan"
_CACHE_NAME: Final = "timing.cache"
_PLUGIN_NAME: Final = "plugin.onnx"

#: Setting of an engine whose 8-bit convolutions are matrix products.
_PRODUCTS: Final = ("convolutions", "matrix products")


@dataclass(frozen=True, slots=True)
class _Engine:
    """One engine before it is built: its file, the compute capabilities that it shall run on, and how.

    `as_products` lets its 8-bit convolutions be written as matrix products.
    """

    target: str
    file_name: str
    capabilities: tuple[str, ...]
    order: PlanOrder
    options: TensorRTOptions
    as_products: bool = False


def why_not_build_tensorrt(host: Host) -> str | None:
    """Say why no TensorRT engine can be made on a machine: it is tuned on the GPU that is there."""
    reason = _why_not_package(host, "tensorrt", "tensorrt")
    if reason is None and host.compute_capability is None:
        return (
            "TensorRT builds for the GPU that is there, and there is no CUDA device or its driver cannot be used: "
            "build on such a machine, or choose the target tensorrt-rtx"
        )
    return reason


def why_not_build_tensorrt_rtx(host: Host) -> str | None:
    """Say why no TensorRT-RTX engine can be made on a machine; it needs no GPU."""
    return _why_not_package(host, "tensorrt-rtx", "rtx")


def build_tensorrt_rtx(request: BuildRequest) -> tuple[EngineRecord, ...]:
    """Make TensorRT-RTX engines, with or without a GPU.

    Parameters
    ----------
    request : BuildRequest
        `graph` is built. Without `compute_capabilities`, engines for all that TensorRT-RTX knows are made; for
        int8 all but 7.5, which has int8 matrix products only and gets them where it is asked for
        (`unetx_exporters.tensorrt.products`).

    Returns
    -------
    tuple of EngineRecord
        One for the GPUs from compute capability 8.0 on, and one for 7.5: in a common engine the older GPUs'
        lack of types would decide the arithmetic of all. Attested.

    Raises
    ------
    SpecError
        A compute capability or an option is unknown.
    ExportError
        The engine cannot be built, or is not what was asked for.
    """
    asked = check_capabilities(request.compute_capabilities) or _default_capabilities(request.precision)
    options = read_options(request.options)
    newer = tuple(capability for capability in asked if capability != _TURING)
    groups = [("engine.plan", newer), ("engine-sm75.plan", (_TURING,) if _TURING in asked else ())]
    engines = [
        _Engine(
            target="tensorrt-rtx",
            file_name=file_name,
            capabilities=capabilities,
            order=PlanOrder(MODULES["tensorrt-rtx"], _GRAPH_NAME, _PLAN_NAME, options.max_batch, capabilities),
            options=options,
            as_products=request.precision is Precision.INT8 and capabilities == (_TURING,),
        )
        for file_name, capabilities in groups
        if capabilities
    ]
    with _cleared_on_error(request, "tensorrt-rtx"):
        return tuple(_build_engine(request, engine) for engine in engines)


def judged_graph(record: EngineRecord, graph: Path) -> Path:
    """Find the graph to judge an engine by where it cannot run: what it was really built from.

    Parameters
    ----------
    record : EngineRecord
        Of an engine that was built from `graph`.
    graph : pathlib.Path
        Typed graph; a rewritten one is put beside it.
    """
    key, value = _PRODUCTS
    if record.settings.get(key) != value:
        return graph
    path = graph.with_name(f"{graph.stem}-products.onnx")
    write_file(path, _read_as_products(graph))
    return path


def build_tensorrt(request: BuildRequest) -> tuple[EngineRecord, ...]:
    """Make a TensorRT engine on and for the GPU that is there.

    Parameters
    ----------
    request : BuildRequest
        `graph` is built. `compute_capabilities`, where given, must name the GPU that is there.

    Returns
    -------
    tuple of EngineRecord
        One, attested.

    Raises
    ------
    SpecError
        An option is unknown.
    ExportError
        The engine cannot be built, or is not what was asked for.
    """
    options = read_options(request.options)
    capabilities = _present_capabilities(request, options)
    order = PlanOrder(
        package=MODULES["tensorrt"],
        graph=_GRAPH_NAME,
        plan=_PLAN_NAME,
        max_batch=options.max_batch,
        compatibility=options.compatibility,
        timing_cache=_CACHE_NAME if options.cache_path is not None else "",
        plugin_graph=_PLUGIN_NAME if request.graph_gated is not None and options.attention_plugin else "",
    )
    with _cleared_on_error(request, "tensorrt"):
        return (_build_engine(request, _Engine("tensorrt", "engine.plan", capabilities, order, options)),)


def _build_engine(request: BuildRequest, engine: _Engine) -> EngineRecord:
    name = f"engines/{engine.target}/{engine.file_name}"
    path = request.directory / name
    cache = engine.options.cache_path if engine.order.timing_cache else None
    with tempfile.TemporaryDirectory(prefix="unetx-") as scratch, staged_file(path) as staging:
        directory = Path(scratch)
        # Under fixed names in the working directory: a longer path would move addresses in the builder process.
        if engine.as_products:
            (directory / _GRAPH_NAME).write_bytes(_read_as_products(request.graph))
        else:
            shutil.copyfile(request.graph, directory / _GRAPH_NAME)
        nodes = arithmetic_nodes(directory / _GRAPH_NAME)
        if cache is not None and cache.exists():
            shutil.copyfile(cache, directory / _CACHE_NAME)
        result, gates = _run(request, engine, directory)
        if engine.order.compute_capabilities:
            _check_plan(directory / _PLAN_NAME, engine, result)
        layers = read_layers(result.reports, nodes)
        found = attest_layers(engine.target, layers, nodes, request.layer_types)
        if request.precision is Precision.INT8:
            require_int8(engine.target, request.graph_fp32, found.layers)
        if cache is not None and (directory / _CACHE_NAME).exists():
            write_file(cache, (directory / _CACHE_NAME).read_bytes())
        shutil.copyfile(directory / _PLAN_NAME, staging)
    return EngineRecord(
        target=engine.target,
        files=(name,),
        settings=_settings(engine) | gates,
        storage_dtype=found.storage_dtype,
        compute_dtype=found.compute_dtype,
        layers=found.layers,
        compute_capabilities=engine.capabilities,
        tools={engine.order.package: result.version},
    )


def _run(request: BuildRequest, engine: _Engine, directory: Path) -> tuple[BuilderResult, dict[str, str]]:
    """Build, with the plugin of the gate if there is one; what comes in its way leaves the standard operators."""
    if not engine.order.plugin_graph or request.graph_gated is None:
        return run_builder(engine.order, directory, engine.options.limits), {}
    try:
        write_plugin_graph(request.graph_gated, directory / engine.order.plugin_graph)
        built = run_builder(engine.order, directory, engine.options.limits)
    except ExportError as error:
        plain = dataclasses.replace(engine.order, plugin_graph="")
        return run_builder(plain, directory, engine.options.limits), {
            "attention_gate": f"standard operators: {error}"
        }
    return built, {"attention_gate": "plugin"}


def _check_plan(plan: Path, engine: _Engine, result: BuilderResult) -> None:
    with plan.open("rb") as stream:
        header = parse_header(stream.read(HEADER_BYTES))
    check_header(header, plan.stat().st_size, result.version, engine.order.compute_capabilities)


def _read_as_products(graph: Path) -> bytes:
    from unetx_exporters.tensorrt.products import write_products

    onnx = require("onnx", purpose="writing convolutions as products")
    return bytes(write_products(onnx.load(graph)).SerializeToString())


def _settings(engine: _Engine) -> dict[str, str]:
    settings = {"max_batch": str(engine.order.max_batch)}
    if engine.as_products:
        settings |= dict([_PRODUCTS])
    if engine.order.compute_capabilities:
        # Tells the two engines of the target apart where they are listed.
        return {"compute_capabilities": " ".join(engine.capabilities), **settings}
    # Unlike those of TensorRT-RTX, these engines stay on the kind of system that built them.
    return {"platform": f"{platform.system()}-{platform.machine()}", **settings}


def _present_capabilities(request: BuildRequest, options: TensorRTOptions) -> tuple[str, ...]:
    present = probe_cuda_device().compute_capability
    if present is None:
        raise ExportError(
            "TensorRT builds for the GPU that is there, and there is no CUDA device or its driver cannot be used"
        )
    if request.compute_capabilities and present not in request.compute_capabilities:
        raise ExportError(
            f"TensorRT builds for the GPU that is there, which has compute capability {present}, asked for was "
            f"{', '.join(request.compute_capabilities)}: build on such a machine, or choose the target tensorrt-rtx"
        )
    if options.compatibility != "ampere_plus":
        return (present,)
    return tuple(sorted({*_AMPERE_PLUS, present}, key=version_numbers))


def _default_capabilities(precision: Precision) -> tuple[str, ...]:
    return tuple(
        capability for capability in CAPABILITY_BITS if capability != _TURING or precision is not Precision.INT8
    )


@contextlib.contextmanager
def _cleared_on_error(request: BuildRequest, target: str) -> Iterator[None]:
    """Leave all of a target's engines or none: without one of them the others must not be packed."""
    try:
        yield
    except BaseException:
        shutil.rmtree(request.directory / "engines" / target, ignore_errors=True)
        raise


def _why_not_package(host: Host, target: str, extra: str) -> str | None:
    module = MODULES[target]
    if module not in host.packages:
        return f"the package {module} is not installed: run pip install 'unetx-opt[{extra}]'"
    if "onnx" not in host.packages:
        return "the package onnx is not installed: run pip install 'unetx-opt[export]'"
    found, oldest = host.packages[module], _OLDEST[target]
    numbers = version_numbers(found)
    if numbers and numbers < version_numbers(oldest):  # a version that cannot be told is tried
        return f"{module} {found} is installed, expected {oldest} or newer: run pip install -U 'unetx-opt[{extra}]'"
    return None
