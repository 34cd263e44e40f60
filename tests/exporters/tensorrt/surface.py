"""What the TensorRT code uses of the packages: names found in its syntax, and the reduced surfaces to check them.

A surface is {"module": [names of the package], class: [names of its members]}, read from a package's real wheel
and kept for the classes that the code uses.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).with_name("golden")
FULL = ROOT.parent / "shared" / "design" / "api"

SOURCES = (
    ROOT / "exporters" / "unetx_exporters" / "tensorrt" / "plan.py",
    ROOT / "exporters" / "unetx_exporters" / "tensorrt" / "builder_process.py",
    ROOT / "toolkit" / "unetx_opt" / "runtime" / "sessions" / "tensorrt_engine.py",
)
VERSIONS = ("tensorrt-10.16.1.11", "tensorrt-11.4.0.106", "tensorrt_rtx-1.7.1.116")

#: Variable or attribute of the sources -> the class of the package that it holds; "module" is the package itself.
CLASSES = {
    "trt": "module",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "tensor": "ITensor",
    "parser": "OnnxParser",
    "error": "ParserError",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "_runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "inspector": "EngineInspector",
    "flags": "NetworkDefinitionCreationFlag",
    "severities": "ILogger",
    "known": "ComputeCapability",
    "levels": "HardwareCompatibilityLevel",
    "strategies": "DynamicShapesKernelSpecializationStrategy",
}
#: The same, where one name holds different classes in different functions.
LOCAL_CLASSES = {
    ("_create_context", "config"): "IRuntimeConfig",
    ("_create_context", "cache"): "IRuntimeCache",
    ("_save_cache", "_cache"): "IRuntimeCache",
    ("_serialized", "cache"): "ITimingCache",
    ("_build", "cache"): None,
}
CONFIG = "IBuilderConfig"

#: Classes whose members are named by text, or that the code only passes on.
NAMED_BY_TEXT = {"NetworkDefinitionCreationFlag", "ComputeCapability", "HardwareCompatibilityLevel", "IHostMemory"}


def used_names() -> set[tuple[str, str]]:
    """Collect (class, member) pairs that the sources use, in their own words or as the text of a `hasattr`."""
    found = set()
    for source in SOURCES:
        for function in ast.walk(ast.parse(source.read_bytes())):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    found.update(_uses(function.name, node))
    return found


def _uses(function: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Attribute):
        owner = _class_of(function, node.value)
        if owner is not None:
            yield owner, node.attr
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
        owner = _class_of(function, node.args[0])
        if owner is not None and isinstance(node.args[1], ast.Constant):
            yield owner, str(node.args[1].value)


def _class_of(function: str, node: ast.expr) -> str | None:
    """Class of the package that an expression holds; None for an object of another package."""
    if isinstance(node, ast.Attribute) and _class_of(function, node.value) == "module":
        return node.attr
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("get_input", "get_error")
    ):
        return {"get_input": "ITensor", "get_error": "ParserError"}[node.func.attr]
    if isinstance(node, ast.Subscript):
        return "ITensor" if isinstance(node.value, ast.Name) and node.value.id == "tensors" else None
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
    if (function, name) in LOCAL_CLASSES:
        return LOCAL_CLASSES[function, name]
    return CONFIG if name == "config" else CLASSES.get(name)


def reduce_surface(full: Mapping[str, list[str] | None]) -> dict[str, list[str]]:
    """Keep every name of the package, and the members of the classes that the code uses."""
    classes = ({owner for owner, _ in used_names()} | NAMED_BY_TEXT | {"DataType"}) - {"module"}
    kept = {owner: sorted(full[owner] or []) for owner in sorted(classes) if owner in full}
    return {"module": sorted(full), **kept}


def read_surface(version: str) -> dict[str, list[str]]:
    """Read a reduced surface of the repository."""
    surface: dict[str, list[str]] = json.loads((GOLDEN / f"surface-{version}.json").read_text(encoding="utf-8"))
    return surface
