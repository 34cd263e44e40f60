"""The operator `unetx::AttentionGate` as a plugin of TensorRT whose kernel is part of the engine.

TensorRT takes PTX when the engine is built ("ahead of time"), so that the engine needs no library of ours where it
runs. TensorRT for RTX has no plugins: it reads the operator's body. Not yet run with a real TensorRT.
"""

from __future__ import annotations

from pathlib import Path
from types import GenericAlias
from typing import Any, Final

from unetx_kernels.attention_gate.plugin import KERNEL, compile_plugin
from unetx_kernels.binaries import why_not_compile
from unetx_kernels.errors import KernelError
from unetx_opt.errors import ExportError
from unetx_opt.files import write_file
from unetx_opt.optional import require

__all__ = ["PLUGIN", "prefer_built_in_kernels", "register_attention_plugin", "why_not_plugin", "write_plugin_graph"]

#: Domain and name of the operator of `unetx_exporters.onnx.attention_function`, as TensorRT joins them.
PLUGIN: Final = "unetx::AttentionGate"
#: What a TensorRT must have; 10.15 is the first with all of it.
_NEEDED: Final = ("IPluginV3QuickAOTBuild", "KernelLaunchParams", "ISymExprs", "QuickPluginCreationRequest")
_MODULE_NEEDED: Final = (
    *("register", "aot_impl", "autotune", "AutoTuneCombination", "KernelLaunchParams", "SymInt32", "SymIntExprs"),
    "cdiv",
)


def why_not_plugin(trt: Any, plugin: Any) -> str | None:
    """Return what a TensorRT lacks to take the plugin, or None.

    Parameters
    ----------
    trt, plugin : module
        ``tensorrt`` and ``tensorrt.plugin``, or ``tensorrt_rtx`` and None.
    """
    lacking = [name for name in _NEEDED if not hasattr(trt, name)]
    lacking += [f"plugin.{name}" for name in _MODULE_NEEDED if not hasattr(plugin, name)]
    if not lacking:
        return None
    version = getattr(trt, "__version__", "of unknown version")
    return f"{trt.__name__} {version} has no {', '.join(lacking)}: use tensorrt 10.15 or later"


def prefer_built_in_kernels(trt: Any) -> int:
    """Return the flag of ``create_network`` that asks for kernels in the engine, or 0 without it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "PREFER_AOT_PYTHON_PLUGINS", None)
    return 0 if flag is None else 1 << int(flag)


def register_attention_plugin(trt: Any, plugin: Any, cache: Path) -> None:
    """Make the plugin known to a TensorRT, once in a process.

    Parameters
    ----------
    trt, plugin : module
        ``tensorrt`` and ``tensorrt.plugin``.
    cache : pathlib.Path
        Folder for compiled kernels.

    Raises
    ------
    ExportError
        This TensorRT takes no such plugin, or no compiler runs here for its kernel.
    """
    reason = why_not_plugin(trt, plugin) or why_not_compile()
    if reason is not None:
        raise ExportError(reason)

    def describe(theta: Any, phi: Any, values: Any, window: int, dilation: int, scale: float) -> Any:
        del theta, phi, window, dilation, scale
        return values.like()

    def tune(  # noqa: PLR0913, PLR0917 - the signature is TensorRT's
        theta: Any, phi: Any, values: Any, window: int, dilation: int, scale: float, outputs: Any
    ) -> Any:
        del theta, phi, values, window, dilation, scale, outputs
        return [plugin.AutoTuneCombination("FP32|FP16, FP32|FP16, FP32|FP16, FP32|FP16", "LINEAR")]

    def implement(  # noqa: PLR0913, PLR0917 - the signature is TensorRT's
        theta: Any, phi: Any, values: Any, window: int, dilation: int, scale: float, outputs: Any, tactic: int
    ) -> Any:
        del phi, outputs, tactic
        _check_attributes(theta, int(dilation), float(scale))
        return _launch(plugin, (theta, values), int(window), values.dtype == trt.float16, cache)

    tensor = plugin.TensorDesc
    outputs = GenericAlias(tuple, (tensor,))
    # TensorRT reads the types of arguments from the annotations themselves, which strings would hide from it.
    for function in (describe, tune, implement):
        tensors = dict.fromkeys(("theta", "phi", "values"), tensor)
        function.__annotations__ = {**tensors, "window": int, "dilation": int, "scale": float}
    describe.__annotations__["return"] = tensor
    tune.__annotations__ |= {"outputs": outputs, "return": GenericAlias(list, (plugin.AutoTuneCombination,))}
    implement.__annotations__ |= {"outputs": outputs, "tactic": int}
    plugin.register(PLUGIN)(describe)
    plugin.autotune(PLUGIN)(tune)
    plugin.aot_impl(PLUGIN)(implement)


def write_plugin_graph(gated: Path, path: Path) -> None:
    """Write a graph whose gates the parser of TensorRT can only take as the plugin.

    With a body beside them it would read that instead. The node says which of a plugin's implementations is wanted,
    so that none that calls Python at run time can be taken.

    Parameters
    ----------
    gated, path : pathlib.Path
        The graph with gates as operators, and the file to write.
    """
    onnx = require("onnx", purpose="marking a graph for a plugin")
    namespace, _, name = PLUGIN.partition("::")
    model = onnx.load(gated)
    del model.functions[:]
    for node in model.graph.node:
        if (node.domain, node.op_type) == (namespace, name):
            marks = {"plugin_namespace": namespace, "plugin_version": "1", "aot": 1}
            node.attribute.extend(onnx.helper.make_attribute(mark, value) for mark, value in marks.items())
    write_file(path, model.SerializeToString())


def _check_attributes(theta: Any, dilation: int, scale: float) -> None:
    hidden = int(theta.shape[1])
    if dilation != 1 or abs(scale - hidden**-0.5) > 1e-6:
        raise ExportError(
            f"{PLUGIN} has dilation {dilation} and scale {scale:g}, its kernel takes 1 and {hidden**-0.5:g}: build "
            "without the plugin"
        )


def _launch(plugin: Any, tensors: tuple[Any, Any], window: int, half: bool, cache: Path) -> Any:
    theta, values = tensors
    try:
        kernel = compile_plugin(window, half=half, width_px=int(values.shape[3]), cache=cache)
    except KernelError as error:
        raise ExportError(f"the kernel of {PLUGIN} cannot be compiled: {error}") from error
    images, channels, height, width = (values.shape_expr[axis] for axis in range(4))
    launch = plugin.KernelLaunchParams()
    down = plugin.cdiv(height, kernel.tile.height * kernel.rows)
    launch.grid_x = down * plugin.cdiv(width, kernel.tile.width) * images
    launch.block_x, launch.block_y = kernel.tile.width, kernel.tile.height
    launch.shared_mem = 0  # what the kernel shares has a fixed size
    numbers = (images, theta.shape_expr[1], channels, height, width)
    extra = plugin.SymIntExprs(len(numbers))
    for index, number in enumerate(numbers):
        extra[index] = plugin.SymInt32(number)
    return KERNEL, kernel.ptx, launch, extra
