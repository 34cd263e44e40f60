"""A small complete bundle in both forms, made of text: nothing here runs an engine."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unetx_opt.bundle.manifest import Manifest
from unetx_opt.bundle.parts import (
    Build,
    Engine,
    EngineGate,
    GateEvidence,
    GateFinding,
    ImageSet,
    KeptLayer,
    Label,
    Operations,
    PrecisionRecord,
    Product,
    SkippedTarget,
    SourceCheckpoint,
)
from unetx_opt.bundle.sign import Signer
from unetx_opt.bundle.write import staged_bundle, write_bundle
from unetx_opt.specs import EngineRecord, InputContract, ModelSpec, Precision

FILES = {
    "engines/cpu/model.onnx": b"graph " * 40,
    "engines/rtx/sm86.plan": bytes(range(256)),
    "model-card.md": b"# A model\n",
    "empty.txt": b"",
}


def gate(**changes: Any) -> EngineGate:
    row = GateFinding(
        rule="mean_dice",
        description="mean Dice kept",
        class_name="lung",
        value=0.9996,
        comparison=">=",
        limit=0.999,
        passed=True,
        worst_image=None,
    )
    fields: dict[str, Any] = {
        "name": "strict",
        "passed": True,
        "evaluated": "engine",
        "why_graph": None,
        "has_truth": False,
        "mean_agreement": 0.9996,
        "worst_agreement": 0.998,
        "worst_agreement_image": "phantom-3",
        "rows": (row,),
    }
    return EngineGate(**{**fields, **changes})


CPU = EngineRecord(
    target="onnxruntime-cpu",
    files=("engines/cpu/model.onnx",),
    settings={"graph_optimization": "all"},
    storage_dtype="float16",
    compute_dtype="float32",
    layers={"conv0": "float32", "conv1": "float32"},
    tools={"onnxruntime": "1.32.0"},
)
RTX = EngineRecord(
    target="tensorrt-rtx",
    files=("engines/rtx/sm86.plan",),
    storage_dtype="float16",
    compute_dtype="float16",
    layers={"conv0": "float16", "conv1": "float16"},
    compute_capabilities=("8.6", "8.9"),
    tools={"tensorrt-rtx": "1.7.0"},
)


def make_manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "product": Product(name="unetx-opt", version="0.1.0"),
        "variant": "attention",
        "spec": ModelSpec(width=8),
        "labels": (Label(index=0, name="background"), Label(index=1, name="lung", colour="#00aa55")),
        "input": InputContract(height=64, width=96),
        "precision": PrecisionRecord(
            requested=Precision.FP16,
            kept_fp32=(KeptLayer(name="softmax", reason="overflows in float16"),),
            dtype_counts={"float16": 20, "float32": 1},
        ),
        "operations": Operations(
            flop=803, baseline_flop=1000, ratio=0.803, by_type={"Conv": 800, "Add": 3}, parameters=12345
        ),
        "engines": (
            Engine.from_record(CPU, gate()),
            Engine.from_record(RTX, gate(evaluated="graph", why_graph="no CUDA device")),
        ),
        "skipped": (SkippedTarget(target="tensorrt", reason="tensorrt is not installed"),),
        "checkpoint": SourceCheckpoint(sha256="ab" * 32, source="reference:attention", variant="attention"),
        "gate": GateEvidence(
            name="strict",
            images=ImageSet(data="phantom", split=None, count=1, image_sha256=(hashlib.sha256(b"3").hexdigest(),)),
        ),
        "build": Build(
            command=("unetx-opt", "build", "--variant", "attention"),
            seeds={"phantom": 7},
            tools={"torch": "2.13.0", "onnx": "1.23.2"},
            host={"system": "Linux", "machine": "x86_64"},
            created="2026-11-05T12:00:00Z",
        ),
        "model_card": "model-card.md",
        "notes": ("Not for diagnosis.",),
    }
    return Manifest(**{**fields, **changes})


def write_into(directory: Path, manifest: Manifest | None = None, signer: Signer | None = None) -> Manifest:
    for name, data in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return write_bundle(directory, manifest if manifest is not None else make_manifest(), signer)


@dataclasses.dataclass(frozen=True)
class Samples:
    """What tests ask for: the functions above, and ready bundles."""

    root: Path
    files: dict[str, bytes]
    make_manifest: Callable[..., Manifest]
    write_into: Callable[..., Manifest]
    gate: Callable[..., EngineGate]

    def directory(self, path: Path) -> Path:
        """A fresh copy of the bundle directory."""
        return shutil.copytree(self.root / "bundle", path)

    @property
    def archive(self) -> bytes:
        """The bytes of the bundle archive."""
        return (self.root / "bundle.unetx").read_bytes()


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    pytest.importorskip("cyclonedx", reason="writing a bundle needs cyclonedx-python-lib")
    root = tmp_path_factory.mktemp("bundles")
    for name, archive in (("bundle", False), ("bundle.unetx", True)):
        with staged_bundle(root / name, archive=archive) as directory:
            write_into(directory)
    return Samples(root, FILES, make_manifest, write_into, gate)
