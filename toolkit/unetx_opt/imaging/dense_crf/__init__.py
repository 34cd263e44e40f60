"""The fully connected CRF as post-processing: mean-field inference on the processor or on a GPU."""

from __future__ import annotations

from unetx_opt.imaging.dense_crf.backends import BACKENDS, CrfBackend, Refinement, preferred_backend, refine
from unetx_opt.imaging.dense_crf.parameters import MAX_CLASSES, CrfParameters

__all__ = ["BACKENDS", "MAX_CLASSES", "CrfBackend", "CrfParameters", "Refinement", "preferred_backend", "refine"]
