"""What a user can decide about a build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unetx_opt.errors import SpecError
from unetx_opt.specs import InputContract, Precision

__all__ = ["BuildOptions"]

DEFAULT_SIZE_PX = 512


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
    size_px : int
        Height and width of the engine's input.
    data : pathlib.Path or None
        Data folder whose validation split decides the gate; None decides it on procedural phantoms.
    split : str
        Split of `data`.
    gate : str or None
        "strict", "standard" or "off"; None takes the precision's default of `DEFAULT_GATES`.
    compute_capabilities : tuple of str
        CUDA compute capabilities such as "8.6"; empty for every one that the builder offers.
    archive : bool
        Pack the bundle into one file.
    overwrite : bool
        Replace an existing output.
    command : tuple of str
        The command line, for the manifest; paths in it are cut to their file names.
    seed : int
        Of the phantoms and of the random inputs of the parity check.
    """

    variant: str
    precision: Precision
    output: Path
    targets: tuple[str, ...] = ()
    checkpoint: Path | None = None
    size_px: int = DEFAULT_SIZE_PX
    data: Path | None = None
    split: str = "validation"
    gate: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    archive: bool = False
    overwrite: bool = False
    command: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision is Precision.INT8:
            raise SpecError("precision int8 is not part of this version: choose fp32 or fp16")
        InputContract(height=self.size_px, width=self.size_px)

    @property
    def gate_name(self) -> str:
        """Name of the gate that decides, or "off"."""
        return self.gate or DEFAULT_GATES[self.precision]


#: Precision -> the gate that decides where none is asked for.
DEFAULT_GATES = {Precision.FP32: "strict", Precision.FP16: "strict", Precision.INT8: "standard"}
