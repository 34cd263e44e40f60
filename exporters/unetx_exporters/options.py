"""What a user can decide about a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.errors import SpecError
from unetx_opt.specs import InputContract, Precision

if TYPE_CHECKING:
    from unetx_opt.bundle.sign import Signer

__all__ = ["DEFAULT_SIZE_PX", "MOST_BUILDS", "BuildOptions"]

DEFAULT_SIZE_PX: Final = 512
#: Every build of an engine is kept until they have been compared.
MOST_BUILDS: Final = 20
#: What names of `BuildOptions.target_options` begin with: the builder that reads and checks them.
OPTION_PREFIXES: Final = ("tensorrt_",)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """One build.

    Attributes
    ----------
    variant : str
        A key of the table of variants.
    precision : Precision
        What is asked for.
    output : pathlib.Path
        The bundle's directory, or its file where `archive` is set.
    targets : tuple of str
        Names of targets; empty for every target that this machine can build.
    checkpoint : pathlib.Path or None
        None takes the reference checkpoint that ships for the variant.
    size_px : int or None
        Height and width of the engine's input; None takes the size that the checkpoint was trained at, or 512.
    data : pathlib.Path or None
        Data folder whose validation split decides the gate; None decides it on procedural phantoms.
    split : str
        Split of `data`.
    gate : str or None
        "strict", "standard" or "off"; None takes the precision's default of `DEFAULT_GATES`.
    compute_capabilities : tuple of str
        CUDA compute capabilities such as "8.6"; empty for every one that the builder offers.
    target_options : mapping of str to object
        Settings of single builders, each named after it: "tensorrt_max_batch".
    pictures : bool
        Show parts of the worst gate images in the evidence; with `data`, these are pictures of its patients.
    archive : bool
        Pack the bundle into one file.
    native : bool
        Put the C library's header, source and examples into the bundle.
    overwrite : bool
        Replace an existing output.
    command : tuple of str
        The command line; the manifest holds it with every path cut to its file name.
    seed : int
        Of the phantoms, of the random inputs of the parity check and of the int8 search.
    budget_minutes : float
        For the int8 search.
    repeat_builds : int
        How often the engines are built from the same graphs; beyond 1 the evidence says how they differ.
    compare : bool
        Compare graphs and engines with PyTorch, and choose float16 layers by what they do to logits. False is for
        measuring the time of random weights, and needs the gate "off": nothing then says what the engines compute.
    signer : Signer or None
        Signs the bundle.
    compress_weights : bool
        Of an fp16 build: store the weights of the CPU engines in 8 bits, if that keeps the gate.
    """

    variant: str
    precision: Precision
    output: Path
    targets: tuple[str, ...] = ()
    checkpoint: Path | None = None
    size_px: int | None = None
    data: Path | None = None
    split: str = "validation"
    gate: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    target_options: Mapping[str, Any] = field(default_factory=dict)
    pictures: bool = True
    archive: bool = False
    native: bool = False
    overwrite: bool = False
    command: tuple[str, ...] = ()
    seed: int = 0
    signer: Signer | None = None
    budget_minutes: float = 6.0
    repeat_builds: int = 1
    compress_weights: bool = False
    compare: bool = True

    def __post_init__(self) -> None:
        if not self.budget_minutes > 0.0:
            raise SpecError(f"the budget is {self.budget_minutes} minutes, expected more than 0")
        if not 1 <= self.repeat_builds <= MOST_BUILDS:
            raise SpecError(f"{self.repeat_builds} builds were asked for, expected 1 to {MOST_BUILDS}")
        if self.compress_weights and self.precision is not Precision.FP16:
            raise SpecError(f"8-bit weights were asked for with {self.precision}, expected fp16")
        if self.size_px is not None:
            InputContract(height=self.size_px, width=self.size_px)
        if not self.compare and self.gate_name != "off":
            raise SpecError(f"the gate is {self.gate_name!r} without comparisons, expected 'off': keep them")
        foreign = [name for name in self.target_options if not name.startswith(OPTION_PREFIXES)]
        if foreign:
            raise SpecError(f"unknown option {foreign[0]}: expected a name that begins with {OPTION_PREFIXES[0]}")

    @property
    def gate_name(self) -> str:
        """Name of the gate that decides, or "off"."""
        return self.gate or DEFAULT_GATES[self.precision]


#: Precision -> the gate that decides where none is asked for.
DEFAULT_GATES: Final = {Precision.FP32: "strict", Precision.FP16: "strict", Precision.INT8: "standard"}
