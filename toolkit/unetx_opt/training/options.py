"""What decides a training run, and apart from it what only helps: runs with equal options and data end alike."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.errors import SpecError
from unetx_opt.optional import require
from unetx_opt.specs import InputContract

if TYPE_CHECKING:
    import torch

__all__ = [
    "PRECISIONS",
    "Arithmetic",
    "Resources",
    "TrainingOptions",
    "autocast",
    "choose_device",
    "choose_precision",
    "choose_workers",
    "gradient_scaler",
    "learning_rate_at",
    "training_contract",
]


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Options of one training run.

    Attributes
    ----------
    variant : str
        A key of the table of variants; it decides graph and loss.
    width : int
        Channels of the first stage.
    size_px : int
        Height and width of a training view, 32 to 2048.
    epochs : int
        Passes over the training split, at most.
    patience : int
        Epochs without a better validation Dice after which training stops.
    batch_size : int
        Views per step, 2 or more: batch normalisation needs two.
    seed : int
        Of the first weights, the order of images and the augmentation.
    learning_rate : float
        Peak, reached after `warmup_epochs`; it then falls along a half cosine to a hundredth.
    warmup_epochs : float
        Length of the linear rise.
    weight_decay : float
        Of AdamW (Loshchilov & Hutter 2019), on weights of two or more axes only.
    clip_norm : float
        Length to which a longer gradient, taken over all weights, is shortened; 0 leaves every gradient as it is.
    average_decay : float
        Of the exponential moving average of the weights, which is what is validated and kept; 0 keeps the weights
        themselves.
    precision : str
        Arithmetic, a key of `PRECISIONS`; the weights are float32 in all of them.
    device : str
        "cpu" or "cuda".
    """

    variant: str
    width: int = 16
    size_px: int = 256
    epochs: int = 40
    patience: int = 10
    batch_size: int = 8
    seed: int = 0
    learning_rate: float = 2e-3
    warmup_epochs: float = 1.0
    weight_decay: float = 0.02
    clip_norm: float = 0.0
    average_decay: float = 0.99
    precision: str = "fp32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("size_px", self.size_px, 32, 2048),
            ("epochs", self.epochs, 1, 100_000),
            ("patience", self.patience, 1, 100_000),
            ("batch_size", self.batch_size, 2, 4096),
            ("seed", self.seed, 0, 2**63 - 1),
            ("average_decay", self.average_decay, 0.0, 0.99999),
            ("warmup_epochs", self.warmup_epochs, 0.0, 1000.0),
            ("weight_decay", self.weight_decay, 0.0, 10.0),
            ("clip_norm", self.clip_norm, 0.0, 1e6),
        ):
            if not low <= value <= high:
                raise SpecError(f"{name} is {value}, expected {low} to {high}")
        if not 0.0 < self.learning_rate <= 1.0:
            raise SpecError(f"learning_rate is {self.learning_rate}, expected above 0 and at most 1")
        if self.precision not in PRECISIONS:
            raise SpecError(f"unknown precision {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        if self.device not in ("cpu", "cuda"):
            raise SpecError(f"unknown device {self.device!r}, expected cpu or cuda")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types by field name."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Resources:
    """What a run may use; none of it changes a weight.

    Attributes
    ----------
    workers : int
        Processes that decode, prepare and augment images; 0 leaves that to a thread of this process.
    cache : pathlib.Path or None
        Folder of prepared images, which several runs may share; None keeps them with the state of the run.
    log : pathlib.Path or None
        Folder for `unetx_opt.training.metrics_log`; None writes no log.
    """

    workers: int = 0
    cache: Path | None = None
    log: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.workers <= 256:
            raise SpecError(f"workers is {self.workers}, expected 0 to 256")


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A row of the table of precisions.

    Attributes
    ----------
    name : str
        What the command line calls it.
    dtype : str
        PyTorch's name of the type that convolutions are computed in.
    why_not : callable
        Device name -> the reason why it does not pay there, or None.
    """

    name: str
    dtype: str
    why_not: Callable[[str], str | None]


def _bf16_why_not(device: str) -> str | None:
    torch = require("torch", purpose="training a model")
    if device == "cuda":
        return None if torch.cuda.is_bf16_supported(including_emulation=False) else "this GPU has no bfloat16"
    features = torch.cpu.get_capabilities()
    has_bf16 = any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return None if has_bf16 else "this CPU has no bfloat16 instructions"


def _fp16_why_not(device: str) -> str | None:
    return None if device == "cuda" else "half precision pays on a GPU alone"


#: Precision name -> its row, the preferred first. "fp16" is for GPUs without bfloat16; its loss is scaled so that
#: small gradients do not vanish. It has been run on a CPU only, never yet on a GPU.
PRECISIONS: Final[Mapping[str, Arithmetic]] = MappingProxyType(
    {
        row.name: row
        for row in (
            Arithmetic("bf16", "bfloat16", _bf16_why_not),
            Arithmetic("fp16", "float16", _fp16_why_not),
            Arithmetic("fp32", "float32", lambda device: None),
        )
    }
)


def choose_device() -> str:
    """Return "cuda" where PyTorch can use a GPU, else "cpu"."""
    torch = require("torch", purpose="training a model")
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_precision(device: str) -> str:
    """Return the first precision that pays on a device."""
    return next(row.name for row in PRECISIONS.values() if row.why_not(device) is None)


def choose_workers(device: str) -> int:
    """Return how many processes should prepare images: a CPU that trains has none to spare, a GPU waits for them."""
    return 0 if device == "cpu" else min(8, max(1, (os.cpu_count() or 1) - 1))


def learning_rate_at(options: TrainingOptions, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step: linear warm-up, then a half cosine from the peak to a hundredth of it.

    Parameters
    ----------
    options : TrainingOptions
        Peak, warm-up and length.
    step : int
        Number of steps done before this one.
    steps_per_epoch : int
        Steps of one pass.
    """
    warmup = options.warmup_epochs * steps_per_epoch
    total = options.epochs * steps_per_epoch
    if step < warmup:
        return options.learning_rate * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
    return options.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def training_contract(size_px: int) -> InputContract:
    """Return the input contract under which images are prepared for training and validation."""
    return InputContract(height=size_px, width=size_px)


def autocast(options: TrainingOptions) -> torch.autocast:
    """Return the autocast context of the run's precision."""
    torch_module = require("torch", purpose="training a model")
    dtype = getattr(torch_module, PRECISIONS[options.precision].dtype)
    context: torch.autocast = torch_module.autocast(
        options.device, dtype=dtype, enabled=dtype is not torch_module.float32
    )
    return context


def gradient_scaler(options: TrainingOptions) -> torch.amp.GradScaler:
    """Return the scaler of the run's precision; it lets everything pass where that is not float16."""
    torch_module = require("torch", purpose="training a model")
    scaler: torch.amp.GradScaler = torch_module.amp.GradScaler(options.device, enabled=options.precision == "fp16")
    return scaler
