"""Write the recorded files: ``python tests/exporters/tensorrt/make_golden.py``.

- ``surface-*.json``: the names of each package that the code uses, cut out of the lists of all names;
- ``layers-*.txt``: the layer list at the end of a verbose build by the installed tensorrt_rtx.

``inspector-by-hand.json`` is not among them: TensorRT needs a GPU to build, so it was written after the inspector's
documentation.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE), str(ROOT / "toolkit"), str(ROOT / "exporters")]

import surface  # noqa: E402
from random_unet import tiny_unet  # noqa: E402
from symmetric_int8 import quantize  # noqa: E402

from unetx_exporters.tensorrt.options import TensorRTOptions  # noqa: E402
from unetx_exporters.tensorrt.plan import PlanOrder  # noqa: E402
from unetx_exporters.tensorrt.process import run_builder  # noqa: E402

CONVOLUTIONS = ("Conv", "ConvTranspose")


def main() -> None:
    surface.GOLDEN.mkdir(exist_ok=True)
    for version in surface.VERSIONS:
        full = json.loads((surface.FULL / f"{version}.json").read_text(encoding="utf-8"))
        text = json.dumps(surface.reduce_surface(full), indent=0)
        (surface.GOLDEN / f"surface-{version}.json").write_text(text + "\n", encoding="utf-8")
    for name, model, capability in (
        ("fp32", tiny_unet(), "8.6"),
        ("fp16", tiny_unet("float16"), "8.6"),
        ("int8", quantize(tiny_unet(), *CONVOLUTIONS), "8.6"),
        ("int8-sm75", quantize(tiny_unet(), *CONVOLUTIONS), "7.5"),
    ):
        (surface.GOLDEN / f"layers-{name}.txt").write_text(_layer_list(model, capability), encoding="utf-8")


def _layer_list(model: Any, capability: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "graph.onnx").write_bytes(model.SerializeToString())
        order = PlanOrder("tensorrt_rtx", "graph.onnx", "engine.plan", 4, (capability,))
        reports = dict(run_builder(order, Path(scratch), TensorRTOptions().limits).reports)
    # The lines end in blanks, which no editor keeps.
    return "\n".join(line.rstrip() for line in reports["log"].splitlines()) + "\n"


if __name__ == "__main__":
    main()
