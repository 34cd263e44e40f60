"""A hand-made report for the pages and the comparison: plausible, and measured by nobody.

Its figures are made by the same functions that a benchmark uses, from samples with a state of the machine that all
contenders of a round share.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unetx_bench.report import Report
from unetx_bench.statistics import minimum_count, quantile_interval, same_or_different

#: Bundle, candidate, kind, median ms, mean agreement, passed.
CANDIDATES = (
    ("unet-fp16", "onnxruntime-cpu", "engine", 40.0, 0.9999, True),
    ("unet-fp16", "torch-eager", "peer", 90.0, 1.0, True),
    ("unet-fp16", "torch-channels-last", "peer", 75.0, 1.0, True),
    ("unet-int8", "openvino-cpu", "engine", 12.0, 0.998, True),
    ("unet-int8", "onnxruntime-cpu", "engine", 9.0, 0.91, False),
)
SPANS = (("engine", 1.0), ("host", 1.1))
KINDS = ("reference", "engine", "difference", "both")
_RULES = (
    ("mean_dice_kept", "mean Dice, engine to reference", ">=", 0.999),
    ("worst_dice_difference", "Dice difference of the worst single image", ">=", -0.01),
)
_STATE = {
    "taken": "2026-01-01T00:00:00Z",
    "load_average": [0.1, 0.2, 0.3],
    "cpu_mhz": 2600.0,
    "speed_us": 430.0,
    "throttle_events": None,
    "temperatures_c": {"package": 55.0},
    "memory_available_bytes": 2**34,
    "on_battery": None,
    "gpu": None,
}


def make_report(
    *,
    seed: int = 0,
    rounds: int = 80,
    factors: Mapping[str, float] | None = None,
    created: str = "2026-01-01T00:00:00Z",
    cpu: str = "Hand-made CPU",
) -> Report:
    """Make a report; `factors` stretch the samples of candidates by name, and "" those of all."""
    return Report.model_validate(make_json(seed, rounds, factors or {}, cpu) | {"created": created})


def make_json(seed: int, rounds: int, factors: Mapping[str, float], cpu: str = "Hand-made CPU") -> dict[str, Any]:
    latencies = _latencies(np.random.default_rng(seed), rounds, factors)
    return {
        "schema_version": 1,
        "product": "unetx-opt 0.0.0",
        "created": "2026-01-01T00:00:00Z",
        "answer": ["Made by hand."],
        "method": _method(),
        "environment": _environment(cpu),
        "image": {"name": "image-0", "sha256": "a" * 64, "height_px": 64, "width_px": 64},
        "bundles": [_bundle("unet-fp16", "fp16"), _bundle("unet-int8", "int8")],
        "run": _run(rounds, len(latencies)),
        "latencies": latencies,
        "ratios": _ratios(latencies),
        "candidates": [_candidate(*row) for row in CANDIDATES],
        "not_measured": {"unet-fp16 tensorrt": "not built: there is no GPU"},
        "drift_data": {
            "data": "phantom",
            "split": None,
            "note": "Not patients.",
            "count": 22,
            "gate": "strict",
            "image_sha256": [f"{index:064x}" for index in range(22)],
        },
        "ceilings": [
            {
                "device": "cpu",
                "flop_per_s": {"float32": 6e10, "int8": 3e11},
                "bytes_per_s": 1.4e10,
                "threads": 2,
                "why_not": {"float16": "this CPU has none"},
            }
        ],
    }


def write_pictures(folder: Path) -> None:
    """Write the pictures that the report names: the left half is bright for the reference, else the right one."""
    for stem in ("a", "b"):
        for kind in KINDS:
            path = folder / "pictures" / f"{stem}-{kind}.png"
            path.parent.mkdir(exist_ok=True)
            grey = np.full((32, 32), 40, np.uint8)
            grey[:, slice(0, 16) if kind == "reference" else slice(16, 32)] = 220
            path.write_bytes(png(grey))


def png(grey: np.ndarray[Any, Any]) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = grey.shape
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _latencies(rng: np.random.Generator, rounds: int, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    machine = np.exp(rng.normal(0, 0.05, rounds))  # for all alike
    rows = []
    for bundle, name, kind, median, *_ in CANDIDATES:
        candidate = f"{bundle} {name}"
        for span, longer in SPANS if kind == "engine" else SPANS[:1]:
            noise = np.exp(rng.normal(0, 0.01, rounds))
            factor = factors.get(candidate, 1.0) * factors.get("", 1.0)
            samples = (median * longer * factor * machine * noise).round(4)
            rows.append(
                {
                    "contender": f"{candidate} [{span}]",
                    "candidate": candidate,
                    "span": span,
                    "batch": 1,
                    "clock": "monotonic",
                    "first_call_ms": float(samples[0]),
                    "median_ms": _estimate(quantile_interval(samples, 0.5)),
                    "p90_ms": _estimate(quantile_interval(samples, 0.9)),
                    "p99_ms": None,
                    "least_ms": float(samples.min()),
                    "mean_ms": float(samples.mean()),
                    "interrupted": 0,
                    "samples_ms": samples.tolist(),
                }
            )
    return rows


def _ratios(latencies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    plain = [row for row in latencies if row["span"] == "engine"]
    rows = []
    for index, first in enumerate(plain):
        for second in plain[index + 1 :]:
            if len(first["samples_ms"]) >= minimum_count(0.5):
                found = same_or_different(first["samples_ms"], second["samples_ms"])
                comparison = {
                    name: getattr(found, name) for name in ("verdict", "confidence", "margin", "resolution")
                } | {"ratio": _estimate(found.ratio)}
                rows.append(
                    {
                        "numerator": first["contender"],
                        "denominator": second["contender"],
                        "comparison": comparison,
                    }
                )
    return rows


def _estimate(estimate: Any) -> dict[str, float] | None:
    return None if estimate is None else {name: getattr(estimate, name) for name in ("value", "low", "high")}


def _bundle(name: str, precision: str) -> dict[str, Any]:
    return {
        "name": name,
        "variant": "unet",
        "precision": precision,
        "manifest_sha256": precision.ljust(64, "0"),
        "checkpoint_sha256": "c" * 64,
        "input_px": [64, 64],
        "flop": 400_000_000,
        "refinement": None,
    }


def _candidate(bundle: str, name: str, kind: str, median: float, agreement: float, passed: bool) -> dict[str, Any]:
    engine, dtype = kind == "engine", "int8" if bundle.endswith("int8") else "float32"
    points = [
        {"layer": f"layer {index}", "intensity": intensity, "limit_ms": 1.0, "bound": "arithmetic"}
        for index, intensity in enumerate((0.5, 8.0, 60.0))
    ]
    roofline = {
        "dtype": dtype,
        "flop": 400_000_000,
        "bytes_moved": 8_000_000,
        "limit_ms": 7.0,
        "arithmetic_ms": 6.7,
        "points": points,
    }
    layers = [{"name": f"layer {index}", "kind": "Conv", "mean_ms": 3.0 - index} for index in range(3)]
    profile = {"source": "a profiler", "inferences": 20, "total_ms": 6.0, "whole_ms": 6.5, "layers": layers}
    cold = {
        "import_ms": 300.0,
        "load_ms": 200.0,
        "first_ms": 50.0,
        "second_ms": 40.0,
        "host_peak_bytes": 2**30,
        "device_bytes": None,
    }
    return {
        "name": f"{bundle} {name}",
        "kind": kind,
        "describes": f"{name}, described",
        "bundle": bundle,
        "target": name if engine else None,
        "storage_dtype": dtype if engine else None,
        "compute_dtype": dtype if engine else None,
        "settings": {},
        "load_ms": 200.0 if engine else None,
        "cold_start": cold if engine else None,
        "energy": [],
        "drift": _drift(agreement, passed, "a" if bundle == "unet-fp16" else "b"),
        "roofline": roofline if engine else None,
        "fraction_of_limit": 7.0 / median if engine else None,
        "fraction_of_arithmetic": 6.7 / median if engine else None,
        "profile": profile if engine else None,
        "why_not": {"energy rapl": "there is no counter"},
    }


def _drift(agreement: float, passed: bool, stem: str) -> dict[str, Any]:
    values = (agreement, agreement - 1)
    rows = [
        {
            "rule": rule,
            "description": description,
            "class_name": "lungs",
            "value": value,
            "comparison": comparison,
            "limit": limit,
            "passed": passed,
            "worst_image": "image-3",
        }
        for (rule, description, comparison, limit), value in zip(_RULES, values, strict=True)
    ]
    images = [
        {"name": f"image-{index}", "class_name": "lungs", "score_difference": (agreement - 1) * index / 21}
        for index in range(22)
    ]
    pictures = {kind: f"pictures/{stem}-{kind}.png" for kind in KINDS}
    worst = {"image": "image-3", "class_name": "lungs", "differing_px": 17, "pictures": pictures}
    decision = {
        "name": "strict",
        "passed": passed,
        "rows": rows,
        "image_count": 22,
        "class_names": ["lungs"],
        "has_truth": False,
        "mean_agreement": agreement,
        "worst_agreement": agreement,
        "worst_agreement_image": "image-3",
    }
    return {"decision": decision, "images": images, "worst": [worst]}


def _method() -> dict[str, Any]:
    return {
        "rules": {"order": "drawn anew for each round", "caches": "not flushed"},
        "confidence": 0.95,
        "half_width": 0.01,
        "decision_confidence": 0.99,
        "decision_margin": 0.01,
        "maximum_seconds": 60.0,
        "settle_s": 0.0,
        "idle_gap_s": 0.0,
        "threads": None,
        "pinned_cpus": None,
        "seed": 0,
    }


def _environment(cpu: str) -> dict[str, Any]:
    return {
        "system": "Linux",
        "machine": "x86_64",
        "python": "3.11.0",
        "kernel": "6.1",
        "cpu": cpu,
        "cpu_flags": ["avx2"],
        "cores": 4,
        "physical_cores": 2,
        "usable_cpus": [0, 1, 2, 3],
        "memory_bytes": 2**35,
        "governor": None,
        "virtual": False,
        "gpu": None,
        "driver": None,
        "compute_capability": None,
        "packages": {"torch": "2.0", "onnxruntime": "1.0"},
        "thread_variables": {},
        "why_not": {"governor": "not offered"},
        "state": _STATE,
    }


def _run(rounds: int, contenders: int) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "stopped": "time",
        "warmup_rounds": 10,
        "warmup_seconds": 2.0,
        "warmup_stable": True,
        "clock": {"readings": 100, "overhead_ns": 50.0, "resolution_ns": 40},
        "order": [list(range(contenders))],
        "started_s": [0.0],
        "disturbed": True,
        "disturbances": ["other processes used up to 0.50 processors"],
        "attempts": [{"rounds": rounds, "disturbances": [], "mean_others_cores": 0.1}],
        "load": [],
        "other_processes": [{"name": "other", "pid": 7, "cpu_s": 1.5}],
        "state_before": _STATE,
        "state_after": _STATE,
    }
