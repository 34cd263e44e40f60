"""What is measured on a machine, what a quick run leaves out, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from unetx_bench.reproduce import plan as plan_module
from unetx_bench.reproduce.plan import ReproduceOptions, make_plan
from unetx_opt.errors import SpecError
from unetx_opt.models.variants import VARIANTS
from unetx_opt.runtime.host import probe_host
from unetx_opt.specs import Precision

OUTPUT = Path("out")


@pytest.fixture(name="host", scope="module")
def _host() -> Any:
    pytest.importorskip("onnxruntime", reason="a target needs onnxruntime: pip install 'unetx-opt[cpu]'")
    return probe_host()


def test_every_variant_is_measured_unless_some_are_named(host: Any) -> None:
    assert make_plan(ReproduceOptions(OUTPUT), host).variants == tuple(VARIANTS)
    assert make_plan(ReproduceOptions(OUTPUT, variants=("crf", "focal")), host).variants == ("unet", "focal", "crf")


def test_a_quick_run_is_on_the_cpu_and_says_what_it_leaves_out(host: Any) -> None:
    plan = make_plan(ReproduceOptions(OUTPUT, data=Path("lungs"), quick=True), host)
    assert plan.targets
    assert all(target.endswith("-cpu") for target in plan.targets)
    assert Precision.INT8 not in plan.precisions
    told = "; ".join(plan.cut)
    for text in ("at most 100 test images", "90 s", "256 x 256", "no drift gate", "first precision"):
        assert text in told
    assert make_plan(ReproduceOptions(OUTPUT), host).cut == ()


def test_a_quick_run_takes_less_time_than_a_full_one(host: Any) -> None:
    quick, full = (make_plan(ReproduceOptions(OUTPUT, quick=quick), host).measure for quick in (True, False))
    assert quick.maximum_seconds < full.maximum_seconds
    assert quick.half_width > full.half_width
    short = make_plan(ReproduceOptions(OUTPUT, seconds=3.0), host).measure
    assert (short.maximum_seconds, short.warmup_maximum_seconds) == (3.0, 3.0)


def test_the_smaller_of_two_limits_holds_for_images(host: Any) -> None:
    options = ReproduceOptions(OUTPUT, data=Path("lungs"), quick=True)
    assert make_plan(options, host).image_limit == 100
    assert make_plan(dataclasses.replace(options, images=7), host).image_limit == 7
    assert make_plan(dataclasses.replace(options, images=700), host).image_limit == 100
    assert make_plan(ReproduceOptions(OUTPUT, data=Path("lungs")), host).image_limit is None


def test_a_precision_that_this_version_cannot_build_is_left_out_with_its_reason(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**given: Any) -> None:
        if given["precision"] is Precision.INT8:
            raise SpecError("precision int8 is not part of this version")

    monkeypatch.setattr(plan_module, "BuildOptions", refuse)
    plan = make_plan(ReproduceOptions(OUTPUT, data=Path("lungs")), host)
    assert plan.precisions == (Precision.FP32, Precision.FP16)
    assert plan.left_out["int8"] == "precision int8 is not part of this version"


def test_a_target_that_cannot_run_here_is_not_built_for_its_time(host: Any) -> None:
    bare = dataclasses.replace(host, compute_capability=None, gpu=None, driver=None)
    plan = make_plan(ReproduceOptions(OUTPUT), bare)
    assert {"tensorrt", "tensorrt-rtx", "onnxruntime-cuda"} <= set(plan.left_out)
    with pytest.raises(SpecError, match="nothing can be built and timed here: tensorrt"):
        make_plan(ReproduceOptions(OUTPUT, targets=("tensorrt-rtx",)), bare)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"train": True}, "--data"),
        ({"train": True, "data": Path("lungs"), "quick": True}, "hours"),
        ({"variants": ("unet", "unett")}, "unett"),
    ],
    ids=["train without data", "train quickly", "unknown variant"],
)
def test_what_contradicts_itself_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        ReproduceOptions(OUTPUT, **given)
