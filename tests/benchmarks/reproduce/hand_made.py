"""Hand-made figures for the rules and the renderings: plausible, and measured by nobody."""

from __future__ import annotations

from typing import Any

from unetx_bench.reproduce.claims import decide_claims
from unetx_bench.reproduce.record import (
    DataRecord,
    Difference,
    EngineLatency,
    GraphRecord,
    Interval,
    PrintedFigures,
    Reproduction,
    Score,
    SettingsRecord,
    StepLatency,
    VariantRecord,
    WeightsRecord,
)

ENGINE = "onnxruntime-cpu fp32 (float32)"


def interval(value: float, half: float = 0.005) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def score(mean: float) -> Score:
    return Score(mean=mean, std=0.01, low=mean - 0.002, high=mean + 0.002, n=60)


def difference(
    minus: str, mean: float, half: float = 0.001, figure: str = "accuracy", p_holm: float | None = 0.02
) -> Difference:
    return Difference(
        minus=minus, figure=figure, mean=mean, low=mean - half, high=mean + half, p_value=0.01, p_holm=p_holm, n=60
    )


def graph(structure: str = "a", flop: int = 6_000_000_000, width: int = 16) -> GraphRecord:
    return GraphRecord(
        structure_sha256=structure * 64,
        width=width,
        depth=4,
        parameters=1_900_000,
        flop=flop,
        flop_ratio=flop / 6e9,
        bytes_moved=200_000_000,
        bytes_ratio=1.0,
    )


def latency(ms: float, ratio: Interval | None, engine: str = ENGINE, step_ms: float | None = None) -> EngineLatency:
    with_step = None if step_ms is None or ratio is None else interval(ratio.value * (1 + step_ms / ms))
    return EngineLatency(
        engine=engine,
        precision="fp32",
        target=engine.partition(" ")[0],
        compute_dtype="float32",
        ms=interval(ms, 0.1),
        rounds=100,
        ratio=ratio,
        ms_with_step=None if step_ms is None else interval(ms + step_ms, 0.1),
        ratio_with_step=with_step,
    )


def variant(name: str, **given: Any) -> VariantRecord:
    """A row that was measured; what is not given is that of the baseline."""
    usual: dict[str, Any] = {
        "graph": graph(),
        "scores": {figure: score(0.98) for figure in ("accuracy", "balanced_accuracy", "miou", "dice")},
        "latencies": (latency(40.0, None if name == "unet" else interval(1.0)),),
        "weights": WeightsRecord(
            source=f"{name}.safetensors", sha256="0" * 64, trained_on="lungs", trained_size_px=256, seed=0
        ),
        "printed": None
        if name == "combined"
        else PrintedFigures(
            model=name, accuracy=0.8, accuracy_spread=0.03, miou=0.7, miou_spread=0.02, latency_ms=11.0
        ),
    }
    return VariantRecord(name=name, summary=f"summary of {name}", **usual | given)


def data(kind: Any = "folder", images: int = 60) -> DataRecord:
    return DataRecord(
        name="lungs",
        kind=kind,
        split=None if kind == "phantom" else "test",
        images=images,
        available=67,
        images_sha256="1" * 64,
        note="Data folder lungs, which is not NIH ChestX-ray14: no accuracy here is an NIH result.",
    )


def everything() -> tuple[VariantRecord, ...]:
    """All six variants, with differences, a step and two engines."""
    step = StepLatency(name="dense_crf", ms=interval(8.0), rounds=100)
    combined = tuple(difference(other, 0.003) for other in ("unet", "focal", "attention", "dilated", "crf"))
    figures = ("accuracy", "miou", "dice")
    return (
        variant("unet"),
        variant("focal", differences=tuple(difference("unet", 0.002, figure=name) for name in figures)),
        variant(
            "attention",
            graph=graph("b", 5_000_000_000),
            differences=tuple(difference("unet", -0.001, figure=name) for name in figures),
            latencies=(latency(36.0, interval(0.9)),),
        ),
        variant("dilated", graph=graph("c", 9_000_000_000), latencies=(latency(60.0, interval(1.5)),)),
        variant("crf", step=step, latencies=(latency(40.0, interval(1.0), step_ms=8.0),)),
        variant("combined", graph=graph("d"), step=step, differences=combined, latencies=(latency(40.0, None),)),
    )


def result(rows: tuple[VariantRecord, ...] | None = None, **given: Any) -> Reproduction:
    shown = everything() if rows is None else rows
    settings = SettingsRecord(
        size_px=256,
        quick=True,
        precisions=("fp32",),
        targets=("onnxruntime-cpu",),
        gate="off",
        cut=("accuracy on at most 100 test images",),
        left_out={"int8": "left out by --quick"},
        clock="array to logits",
        stopped="the time was up",
    )
    usual: dict[str, Any] = {
        "program": "unetx-opt",
        "version": "0.1.0",
        "created": "2026-11-23T20:00:00Z",
        "seconds": 300.0,
        "device": "some CPU, 2 processors",
        "environment": {"packages": {"torch": "2.13.0"}},
        "disturbances": (),
        "data": data(),
        "settings": settings,
        "variants": shown,
        "claims": decide_claims(shown, given.get("data", data())),
    }
    return Reproduction(**usual | given)
