"""What 8-bit engines ask of a CPU, beside the package that runs them."""

from __future__ import annotations

from typing import Final

from unetx_opt.specs import EngineRecord, Host

__all__ = ["has_exact_products", "why_not_int8"]

#: Any of these sums 8-bit products in 32 bits. Without them x86 CPUs add pairs of products in 16 bits, which saturate
#: (the instruction vpmaddubsw): other masks than those that passed the gate.
EXACT_PRODUCTS: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
# Every 64-bit x86 CPU has it: a list without it is no list of flags, but what another source knows.
_ALWAYS_LISTED: Final = "sse2"
_INTEGERS: Final = frozenset({"int8", "uint8"})


def has_exact_products(host: Host) -> bool:
    """Whether the CPU sums 8-bit products without saturating; taken to be so where its features are unknown."""
    return _ALWAYS_LISTED not in host.cpu_features or bool(EXACT_PRODUCTS & host.cpu_features)


def why_not_int8(host: Host, record: EngineRecord | None) -> str | None:
    """Say why a CPU cannot run an 8-bit engine as it was measured; None for other engines, or where it can.

    A CPU whose features are unknown is no reason against it.
    """
    if record is None or not _INTEGERS & {record.compute_dtype, *record.layers.values()}:
        return None
    if has_exact_products(host):
        return None
    return (
        "it computes on 8-bit integers, whose products saturate on a CPU without VNNI, and its gate was passed on "
        "one that has it: take an fp16 or fp32 bundle"
    )
