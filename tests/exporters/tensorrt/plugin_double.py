"""A stand-in for `tensorrt.plugin` that keeps what is registered; expressions are plain numbers."""

from __future__ import annotations

import types
from types import SimpleNamespace
from typing import Any


class Plugin(types.ModuleType):
    """As much of tensorrt.plugin as is used.

    Attributes
    ----------
    registered : dict
        Kind of function ("register", "autotune", "aot_impl") to the function.
    """

    def __init__(self, plugin_id: str) -> None:
        super().__init__("tensorrt.plugin")
        self.plugin_id = plugin_id
        self.registered: dict[str, Any] = {}
        self.TensorDesc = SimpleNamespace
        self.AutoTuneCombination = lambda *fields: fields
        self.KernelLaunchParams = SimpleNamespace
        self.SymIntExprs = lambda count: [None] * count
        self.SymInt32 = lambda value: ("int32", value)
        for kind in ("register", "autotune", "aot_impl"):
            setattr(self, kind, self._decorator(kind))

    def _decorator(self, kind: str) -> Any:
        def decorate(name: str) -> Any:
            assert name == self.plugin_id
            return lambda function: self.registered.setdefault(kind, function)

        return decorate

    @staticmethod
    def cdiv(value: int, by: int) -> int:
        return -(-value // by)
