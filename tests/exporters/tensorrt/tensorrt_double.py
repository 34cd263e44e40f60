"""A stand-in for the TensorRT packages that has exactly the names of a given version and no others.

It builds nothing: every call is written to a journal, and the "engine" is a file that says how it was ordered.
An attribute outside the version's surface raises AttributeError, on the package as on its objects.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable, Mapping
from typing import Any

Surface = Mapping[str, list[str]]

#: Shape of the double's one input and one output, without the batch.
IMAGE = (1, 4, 4)


class Member(int):
    """A member of an enumeration: a number that knows its name."""

    def __new__(cls, value: int, name: str) -> Member:
        member = super().__new__(cls, value)
        member.name = name  # type: ignore[attr-defined]
        return member

    def __repr__(self) -> str:
        return self.name  # type: ignore[attr-defined, no-any-return]


class Package(types.ModuleType):
    """The package: enumerations, the classes that are constructed, and a journal of what was done.

    Attributes
    ----------
    journal : list of (str, tuple)
        "Class.member" and the arguments of every call, or the value of every assignment.
    answers : dict
        What objects answer: see `_ANSWERS`.
    """

    def __init__(self, surface: Surface, version: str, **answers: Any) -> None:
        super().__init__("tensorrt_double")
        self.__version__ = version
        self.__dict__.update(surface=surface, journal=[], answers={**_ANSWERS, **answers})

    def __getattr__(self, name: str) -> Any:
        surface = self.__dict__["surface"]
        if name not in surface["module"]:
            raise AttributeError(f"this version has no {name}")
        if name == "ILogger":
            value: Any = _logger_class(surface)
        elif name == "IProfiler":
            value = type("IProfiler", (), {})
        elif name == "float32":
            value = Member(surface["DataType"].index("FLOAT"), "FLOAT")
        elif name in _CONSTRUCTORS:
            value = _CONSTRUCTORS[name](self)
        elif name in surface and all(member.isupper() for member in surface[name]):
            value = _enumeration(name, surface[name])
        elif name in surface:
            value = type(name, (), {})
        else:
            value = self.function(name)
        self.__dict__[name] = value
        return value

    def function(self, name: str) -> Callable[..., Any]:
        """Make a function of the package that does nothing but note its call."""
        return lambda *arguments: self.journal.append((name, arguments))

    def make(self, kind: str, **values: Any) -> Guarded:
        """Make an object of one of the version's classes."""
        return Guarded(self, kind, values)

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """Arguments of every call of "Class.member", in order."""
        return [arguments for called, arguments in self.journal if called == name]


class Guarded:
    """An object that has the members of its class in one version, with values or functions for some of them."""

    def __init__(self, package: Package, kind: str, values: Mapping[str, Any]) -> None:
        members = package.surface[kind]
        unknown = set(values) - set(members)
        object.__setattr__(self, "_state", (package, kind, frozenset(members), dict(values)))
        for name in unknown:  # the double must not know more than the version
            del self._state[3][name]

    def __getattr__(self, name: str) -> Any:
        package, kind, members, values = object.__getattribute__(self, "_state")
        if name not in members:
            raise AttributeError(f"{kind} has no {name} in this version")
        if name not in values:
            raise NotImplementedError(f"the double has no {kind}.{name}")
        value = values[name]
        if not callable(value):
            return value

        def call(*arguments: Any) -> Any:
            package.journal.append((f"{kind}.{name}", arguments))
            return value(*arguments)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        package, kind, members, values = object.__getattribute__(self, "_state")
        if name not in members:
            raise AttributeError(f"{kind} has no {name} in this version")
        package.journal.append((f"{kind}.{name}", (value,)))
        values[name] = value


def _enumeration(name: str, members: list[str]) -> type:
    return type(name, (), {member: Member(value, member) for value, member in enumerate(members)})


def _logger_class(surface: Surface) -> type:
    severities = [name for name in surface["ILogger"] if name.isupper()]
    return type("ILogger", (), {"Severity": _enumeration("Severity", severities)})


def _tensor(package: Package, name: str) -> Guarded:
    return package.make("ITensor", name=name, shape=(-1, *IMAGE), dtype=package.float32)


def _network(package: Package) -> Guarded:
    return package.make(
        "INetworkDefinition",
        num_inputs=1,
        num_outputs=1,
        get_input=lambda index: _tensor(package, "image"),
        get_output=lambda index: _tensor(package, "logits"),
    )


def _config(package: Package) -> Guarded:
    return package.make(
        "IBuilderConfig",
        clear_flag=lambda flag: None,
        add_optimization_profile=lambda profile: 0,
        set_compute_capability=lambda capability, index: True,
        create_timing_cache=lambda data: package.make("ITimingCache", serialize=lambda: data + b"+measured"),
        set_timing_cache=lambda cache, ignore_mismatch: package.answers["cache_fits"],
    )


def _builder(package: Package) -> Callable[[Any], Guarded]:
    def construct(log: Any) -> Guarded:
        def build(network: Any, config: Any) -> bytes | None:
            answers = package.answers
            if answers["build_error"]:
                log.log(package.ILogger.Severity.ERROR, answers["build_error"])
                return None
            if answers["log_dump"]:
                log.log(package.ILogger.Severity.VERBOSE, answers["log_dump"])
            return bytes(answers["plan"])

        return package.make(
            "Builder",
            create_network=lambda flags: _network(package),
            create_builder_config=lambda: _config(package),
            create_optimization_profile=lambda: package.make(
                "IOptimizationProfile", set_shape=lambda name, low, best, high: None
            ),
            build_serialized_network=build,
        )

    return construct


def _parser(package: Package) -> Callable[[Any, Any], Guarded]:
    def construct(network: Any, log: Any) -> Guarded:
        error = package.make(
            "ParserError", node_name=lambda: "stem", node_operator=lambda: "Conv", desc=lambda: "no\n good"
        )
        fails = package.answers["parse_fails"] or bool(package.answers["refused"])

        def parse(graph: bytes) -> bool:
            refused = package.answers["refused"]
            return not package.answers["parse_fails"] and not (refused and refused in graph)

        return package.make("OnnxParser", parse=parse, num_errors=int(fails), get_error=lambda index: error)

    return construct


def _runtime(package: Package) -> Callable[[Any], Guarded]:
    def construct(log: Any) -> Guarded:
        def deserialize(plan: bytes) -> Guarded | None:
            if package.answers["has_gpu"] and plan == package.answers["plan"]:
                return _engine(package)
            log.log(package.ILogger.Severity.ERROR, "no CUDA-capable device,\nor not my plan")
            return None

        return package.make(
            "Runtime",
            deserialize_cuda_engine=deserialize,
            get_engine_validity=lambda plan: (2, package.answers["diagnostics"]),
        )

    return construct


def _engine(package: Package) -> Guarded:
    names, shapes = ("image", "logits"), {"image": (-1, *IMAGE), "logits": (-1, *IMAGE)}
    return package.make(
        "ICudaEngine",
        num_io_tensors=2,
        get_tensor_name=lambda index: names[index],
        get_tensor_dtype=lambda name: package.answers["io_dtype"] or package.float32,
        get_tensor_shape=lambda name: shapes[name],
        get_tensor_profile_shape=lambda name, index: [
            (1, *IMAGE),
            (1, *IMAGE),
            (package.answers["max_batch"], *IMAGE),
        ],
        create_engine_inspector=lambda: package.make(
            "EngineInspector", get_engine_information=lambda form: package.answers["inspector_json"]
        ),
        create_runtime_config=lambda: _runtime_config(package),
        create_execution_context=lambda *config: _context(package),
    )


def _runtime_config(package: Package) -> Guarded:
    return package.make(
        "IRuntimeConfig",
        create_runtime_cache=lambda: package.make(
            "IRuntimeCache", serialize=lambda: b"kernels", deserialize=lambda data: True
        ),
        set_runtime_cache=lambda cache: True,
    )


def _context(package: Package) -> Guarded:
    """Make a context that computes logits = 2 image + 1 on the memory that it was given."""
    addresses: dict[str, int] = {}
    batch = [0]

    def set_shape(name: str, shape: tuple[int, ...]) -> bool:
        batch[0] = shape[0]
        return bool(1 <= shape[0] <= package.answers["max_batch"])

    def set_address(name: str, address: int) -> bool:
        addresses[name] = address
        return True

    def execute(stream: int) -> bool:
        count = batch[0] * IMAGE[0] * IMAGE[1] * IMAGE[2]
        image = (ctypes.c_float * count).from_address(addresses["image"])
        logits = (ctypes.c_float * count).from_address(addresses["logits"])
        logits[:] = [2 * value + 1 for value in image]
        if context.profiler is not None:
            for layer, took_ms in package.answers["layer_ms"].items():
                context.profiler.report_layer_time(layer, took_ms)
        return not package.answers["execution_fails"]

    functions = {"set_input_shape": set_shape, "set_tensor_address": set_address, "execute_async_v3": execute}
    context = package.make("IExecutionContext", profiler=None, **functions)
    return context


_CONSTRUCTORS: dict[str, Callable[[Package], Callable[..., Any]]] = {
    "Builder": _builder,
    "OnnxParser": _parser,
    "Runtime": _runtime,
}

_ANSWERS: dict[str, Any] = {
    "has_gpu": True,
    "plan": b"a plan of the test double",
    "max_batch": 2,
    "parse_fails": False,
    "refused": b"",
    "build_error": "",
    "log_dump": "",
    "inspector_json": "{}",
    "cache_fits": True,
    "diagnostics": 0,
    "io_dtype": None,
    "execution_fails": False,
    "layer_ms": {"stem": 0.25, "head": 0.125},
}
