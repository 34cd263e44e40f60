"""ONNX graph to plan: the one code path for TensorRT 10, TensorRT 11 and TensorRT-RTX.

The network is always strongly typed, so that every precision is decided in the ONNX graph. What a version has
is asked of the package itself; the packages differ in three places only, the columns of `PACKAGES`.

No file is read or written here; `builder_process` runs this in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from unetx_exporters.tensorrt.layers import DUMP_TITLE
from unetx_opt.errors import ExportError
from unetx_opt.optional import require
from unetx_opt.runtime.sessions.base import INPUT_NAME, OUTPUT_NAME

__all__ = ["COMPATIBILITY_LEVELS", "PACKAGES", "BuiltPlan", "PackageRow", "PlanOrder", "build_plan"]

#: Option -> member of `HardwareCompatibilityLevel`.
COMPATIBILITY_LEVELS: Final[Mapping[str, str]] = MappingProxyType(
    {"none": "NONE", "ampere_plus": "AMPERE_PLUS", "same_compute_capability": "SAME_COMPUTE_CAPABILITY"}
)


@dataclass(frozen=True, slots=True)
class PlanOrder:
    """One plan to build, as it travels to the builder process.

    Attributes
    ----------
    package : str
        Module that builds it, a key of `PACKAGES`.
    graph, plan : str
        Name of the ONNX file, and of the file to write.
    max_batch : int
        Largest batch; the plan is tuned for 1 and runs 1 to `max_batch`.
    compute_capabilities : tuple of str
        GPUs to build for, for a package that builds for GPUs that are not there.
    compatibility : str
        A key of `COMPATIBILITY_LEVELS`, for a package that builds for the GPU that is there.
    timing_cache : str
        Name of a file with measured kernels to start from and to leave behind; empty for none.
    plugin_graph : str
        Name of the ONNX file whose gates are nodes of the plugin, which is then built; empty for `graph`.
    """

    package: str
    graph: str
    plan: str
    max_batch: int
    compute_capabilities: tuple[str, ...] = ()
    compatibility: str = "none"
    timing_cache: str = ""
    plugin_graph: str = ""


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """What a build leaves.

    Attributes
    ----------
    plan : bytes
        The engine.
    reports : tuple of (str, str)
        Form ("log" or "json") and text of each report on its layers.
    timing_cache : bytes or None
        To be used by the next build, where the package keeps one.
    """

    plan: bytes
    reports: tuple[tuple[str, str], ...]
    timing_cache: bytes | None = None


@dataclass(frozen=True, slots=True)
class PackageRow:
    """What differs between the packages.

    Attributes
    ----------
    select_gpu : callable
        ``(trt, config, order)``: name the GPUs to build for.
    load_cache : callable
        ``(config, bytes or None) -> cache or None``: give the builder its timing cache.
    load_plugins : callable
        ``(trt, log)``: register operators beyond the built-in ones.
    load_gates : callable
        ``(trt)``: register the plugin of the attention gate, and give the flags that its network needs; an
        `ExportError` where there is none.
    """

    select_gpu: Callable[[Any, Any, PlanOrder], None]
    load_cache: Callable[[Any, bytes | None], Any]
    load_plugins: Callable[[Any, Any], None]
    load_gates: Callable[[Any], int]


def build_plan(trt: Any, order: PlanOrder, graph: bytes, timing_cache: bytes | None = None) -> BuiltPlan:
    """Build one engine.

    Parameters
    ----------
    trt : module
        `tensorrt` or `tensorrt_rtx`.
    order : PlanOrder
        What to build.
    graph : bytes
        Typed ONNX graph: ``image`` float32 (N, C, H, W), N dynamic, to ``logits`` float32 (N, K, H, W); with nodes of
        the plugin where the order names such a graph.
    timing_cache : bytes, optional
        What an earlier build left.

    Raises
    ------
    ExportError
        The graph cannot be read or has another contract, or the engine cannot be built; with the last error
        that the package reported.
    """
    row = PACKAGES[order.package]
    log = _open_log(trt)
    row.load_plugins(trt, log)
    gate_flags = row.load_gates(trt) if order.plugin_graph else 0
    builder = trt.Builder(log)
    builder.max_threads = 1  # the order in which several would finish shows in the plan's bytes
    network = builder.create_network(_network_flags(trt) | gate_flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        raise ExportError(f"{order.package} cannot read the ONNX graph: {_parser_error(parser, log)}")
    _check_contract(trt, network)
    config = _make_config(trt, builder, order, _batch_profile(builder, network, order.max_batch))
    cache = row.load_cache(config, timing_cache)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise ExportError(f"{order.package} cannot build the engine: {log.last_error()}")
    plan = bytes(built)
    return BuiltPlan(plan, _layer_reports(trt, log, plan), _serialized(cache))


def _make_config(trt: Any, builder: Any, order: PlanOrder, profile: Any) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # Float layers were asked to be float: TF32 would round their products to 10 bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    if config.add_optimization_profile(profile) < 0:
        raise ExportError(f"{order.package} refuses the batch range 1 to {order.max_batch}")
    PACKAGES[order.package].select_gpu(trt, config, order)
    return config


def _open_log(trt: Any) -> Any:
    """Make a logger that keeps errors and the layer list, and passes errors on as they come.

    The class is made here because its base comes with the package.
    """
    severities = trt.ILogger.Severity
    failures = (severities.INTERNAL_ERROR, severities.ERROR)

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.layers = ""
            self.is_muted = False

        def log(self, severity: Any, message: str) -> None:
            if severity in failures and not self.is_muted:
                self.errors.append(" ".join(message.split()))
                # At once: what follows may be the end of the process.
                sys.stderr.write(f"error: {self.errors[-1]}\n")
                sys.stderr.flush()
            elif message.startswith(DUMP_TITLE):
                self.layers = message

        def last_error(self) -> str:
            return self.errors[-1] if self.errors else "it gave no reason"

    return Log()


def _network_flags(trt: Any) -> int:
    # 10.x knows both and types a network by its graph only where it is told to; 11.x has dropped the first.
    flags = trt.NetworkDefinitionCreationFlag
    names = [name for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(flags, name)]
    return sum(1 << int(getattr(flags, name)) for name in names)


def _parser_error(parser: Any, log: Any) -> str:
    if parser.num_errors == 0:
        return str(log.last_error())
    error = parser.get_error(0)
    node = error.node_name() or "the graph"
    return f"{node} ({error.node_operator() or 'no operator'}): {' '.join(error.desc().split())}"


def _check_contract(trt: Any, network: Any) -> None:
    found = {
        "inputs": [network.get_input(index) for index in range(network.num_inputs)],
        "outputs": [network.get_output(index) for index in range(network.num_outputs)],
    }
    expected = {"inputs": INPUT_NAME, "outputs": OUTPUT_NAME}
    for side, tensors in found.items():
        if [tensor.name for tensor in tensors] != [expected[side]] or tensors[0].dtype != trt.float32:
            listed = ", ".join(f"{tensor.name} {tensor.dtype}" for tensor in tensors)
            raise ExportError(f"the graph's {side} are {listed or 'none'}, expected {expected[side]} float32 alone")
    shape = tuple(network.get_input(0).shape)
    if len(shape) != 4 or shape[0] != -1 or min(shape[1:]) < 1:
        raise ExportError(f"the graph's input is {shape}, expected (N, C, H, W) where N alone is dynamic (-1)")


def _batch_profile(builder: Any, network: Any, max_batch: int) -> Any:
    profile = builder.create_optimization_profile()
    image = tuple(network.get_input(0).shape)[1:]
    profile.set_shape(INPUT_NAME, (1, *image), (1, *image), (max_batch, *image))
    return profile


def _select_compute_capabilities(trt: Any, config: Any, order: PlanOrder) -> None:
    known = trt.ComputeCapability
    config.num_compute_capabilities = len(order.compute_capabilities)
    for index, capability in enumerate(order.compute_capabilities):
        name = f"SM{capability.replace('.', '')}"
        if not hasattr(known, name) or not config.set_compute_capability(getattr(known, name), index):
            raise ExportError(
                f"the installed {order.package} does not build for compute capability {capability}: "
                "choose another --compute-capability, or update it"
            )


def _select_compatibility_level(trt: Any, config: Any, order: PlanOrder) -> None:
    levels = trt.HardwareCompatibilityLevel
    config.hardware_compatibility_level = getattr(levels, COMPATIBILITY_LEVELS[order.compatibility])


def _no_cache(config: Any, data: bytes | None) -> None:
    """Do nothing: TensorRT-RTX measures no kernels while it builds, and compiles them when it runs."""


def _load_timing_cache(config: Any, data: bytes | None) -> Any:
    cache = config.create_timing_cache(data or b"")
    # A cache of another GPU or version is refused here, and the build starts from an empty one.
    if not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _no_plugins(trt: Any, log: Any) -> None:
    """Do nothing: registering a plugin would abort the process."""


def _load_standard_plugins(trt: Any, log: Any) -> None:
    trt.init_libnvinfer_plugins(log, "")


def _no_gates(trt: Any) -> int:
    raise ExportError("tensorrt_rtx takes no plugin: build its graph of standard operators")


def _load_gates(trt: Any) -> int:
    # Imported here: other builds need neither, and what a builder process has loaded shows in a plan's bytes.
    from unetx_exporters.tensorrt.attention_plugin import prefer_built_in_kernels, register_attention_plugin
    from unetx_kernels.binaries import default_cache

    plugin = require("tensorrt.plugin", purpose="the plugin of the attention gate")
    register_attention_plugin(trt, plugin, default_cache())
    return prefer_built_in_kernels(trt)


#: Package -> what is its own.
PACKAGES: Final[Mapping[str, PackageRow]] = MappingProxyType(
    {
        "tensorrt": PackageRow(_select_compatibility_level, _load_timing_cache, _load_standard_plugins, _load_gates),
        "tensorrt_rtx": PackageRow(_select_compute_capabilities, _no_cache, _no_plugins, _no_gates),
    }
)


def _serialized(cache: Any) -> bytes | None:
    return None if cache is None else bytes(cache.serialize())


def _layer_reports(trt: Any, log: Any, plan: bytes) -> tuple[tuple[str, str], ...]:
    """Collect what is said about the layers: the builder's own list, and where a GPU is there the inspector's."""
    reports = [("log", log.layers)] if log.layers else []
    # Without a GPU the engine cannot be opened, and why not is no error of the build.
    log.is_muted = True
    runtime = trt.Runtime(log)
    _check_validity(trt, runtime, plan)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is not None:
        # Without a shape for the batch: where the inspector then withholds a type, that of the weights remains.
        inspector = engine.create_engine_inspector()
        reports.append(("json", str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))))
    return tuple(reports)


def _check_validity(trt: Any, runtime: Any, plan: bytes) -> None:
    if not hasattr(runtime, "get_engine_validity"):
        return
    # The verdict itself needs a GPU; that the file is malformed is found without one.
    _, diagnostics = runtime.get_engine_validity(plan)
    if int(diagnostics) & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE):
        raise ExportError("the package calls its own plan malformed: build it again, or update the package")
