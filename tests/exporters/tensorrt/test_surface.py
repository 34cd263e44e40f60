"""Every name that the code uses of TensorRT, against the names that its versions have."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

#: Names that one package alone has, and why the code may use them.
PARTIAL = {
    ("IBuilderConfig", "set_compute_capability"): "in the row of tensorrt_rtx",
    ("IBuilderConfig", "num_compute_capabilities"): "in the row of tensorrt_rtx",
    ("module", "ComputeCapability"): "in the row of tensorrt_rtx",
    ("Runtime", "get_engine_validity"): "behind hasattr",
    ("module", "EngineInvalidityDiagnostics"): "behind that hasattr",
    ("EngineInvalidityDiagnostics", "MALFORMED_ENGINE"): "behind that hasattr",
    ("module", "IRuntimeCache"): "in a hasattr",
    ("module", "DynamicShapesKernelSpecializationStrategy"): "behind that hasattr",
    ("DynamicShapesKernelSpecializationStrategy", "EAGER"): "behind that hasattr",
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"): "behind that hasattr",
    ("IRuntimeConfig", "create_runtime_cache"): "behind that hasattr",
    ("IRuntimeConfig", "set_runtime_cache"): "behind that hasattr",
    ("IRuntimeCache", "serialize"): "behind that hasattr",
    ("IRuntimeCache", "deserialize"): "behind that hasattr",
}
#: Python gives every module one; the lists leave such names out.
DUNDER = ("module", "__version__")


def test_every_name_exists_in_every_version_or_is_known_to_be_partial(surface: ModuleType) -> None:
    surfaces = {version: surface.read_surface(version) for version in surface.VERSIONS}
    missing = {
        (owner, name): [v for v, names in surfaces.items() if name not in names.get(owner, ())]
        for owner, name in surface.used_names()
        if (owner, name) != DUNDER
    }
    partial = {pair: versions for pair, versions in missing.items() if versions}
    assert set(partial) == set(PARTIAL)
    assert {tuple(versions) for versions in partial.values()} == {surface.VERSIONS[:2]}


def test_the_names_that_tensorrt_11_has_removed_are_not_used(surface: ModuleType) -> None:
    ten, eleven = (surface.read_surface(version) for version in surface.VERSIONS[:2])
    removed = {(owner, name) for owner in ten for name in set(ten[owner]) - set(eleven.get(owner, ()))}
    assert {("BuilderFlag", "FP16"), ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")} <= removed
    assert surface.used_names() & removed == set()


def test_the_collector_finds_what_a_reader_finds(surface: ModuleType) -> None:
    expected = {
        ("module", "OnnxParser"),
        ("OnnxParser", "parse"),
        ("ParserError", "node_name"),
        ("INetworkDefinition", "get_input"),
        ("ITensor", "shape"),
        ("BuilderFlag", "TF32"),
        ("IBuilderConfig", "profiling_verbosity"),
        ("ITimingCache", "serialize"),
        ("EngineInspector", "get_engine_information"),
        ("ICudaEngine", "get_tensor_profile_shape"),
        ("IExecutionContext", "execute_async_v3"),
        ("ILogger", "INTERNAL_ERROR"),
    }
    assert expected <= surface.used_names()


@pytest.mark.parametrize("index", range(3), ids=["10.16", "11.4", "rtx 1.7"])
def test_the_reduced_surface_is_cut_out_of_the_full_one(surface: ModuleType, index: int) -> None:
    version = surface.VERSIONS[index]
    full = surface.FULL / f"{version}.json"
    if not full.is_file():
        pytest.skip(f"needs the list of all names of {version}, which is not part of the project")
    assert surface.read_surface(version) == surface.reduce_surface(json.loads(full.read_text(encoding="utf-8")))


def test_the_installed_package_has_the_recorded_names(surface: ModuleType) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    version = surface.VERSIONS[2]
    if version != f"tensorrt_rtx-{trt.__version__}":
        pytest.skip(f"tensorrt_rtx {trt.__version__} is installed, the names are those of {version}")
    recorded = surface.read_surface(version)
    for owner, name in surface.used_names():
        holder = trt if owner == "module" else getattr(trt, owner)
        assert hasattr(holder, name), f"{owner}.{name}"
    assert set(recorded["module"]) <= set(dir(trt))
