"""Bundle to masks on this machine: choose an engine, load it, segment. Never needs torch or onnx."""

from unetx_opt.runtime.opening import open_bundle
from unetx_opt.runtime.segmenter import Segmentation, Segmenter

__all__ = ["Segmentation", "Segmenter", "open_bundle"]
