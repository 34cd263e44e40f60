"""Rules of the house that no linter knows: one door for optional packages, and nothing that unpickles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from unetx_opt.optional import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for source_root in ("toolkit", "kernels", "exporters", "benchmarks")
    for path in (ROOT / source_root).rglob("*.py")
)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a module without the branches that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for statement in node.orelse:
                yield statement
                yield from _run_time_nodes(statement)
            continue
        yield node
        yield from _run_time_nodes(node)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module.partition(".")[0]]
    return []


def _called(node: ast.AST) -> str:
    """Return the name of what a node calls, without what precedes its last dot; empty for other nodes."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_optional_packages_come_in_through_the_one_door(path: Path) -> None:
    if path.name == "optional.py":
        return
    for node in _run_time_nodes(ast.parse(path.read_bytes())):
        direct = set(_imported(node)) & set(EXTRAS)
        assert direct == set(), f"line {node.lineno}: import of {direct}; use unetx_opt.optional.require"
        if _called(node) == "require" and isinstance(node, ast.Call) and isinstance(node.args[0], ast.Constant):
            top = str(node.args[0].value).partition(".")[0]
            assert top in EXTRAS, f"line {node.lineno}: {top} has no extra in unetx_opt.optional.EXTRAS"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_nothing_unpickles(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_bytes())):
        assert not set(_imported(node)) & {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
        if not isinstance(node, ast.Call):
            continue
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert arguments.get("allow_pickle", "False") == "False", f"line {node.lineno}"
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "torch.load":
            assert arguments.get("weights_only") == "True", f"line {node.lineno}"


@pytest.mark.parametrize("package", ["torch", "click", "onnx", "unetx_opt.models", "unetx_opt.training"])
def test_the_runtime_never_names_what_it_must_run_without(package: str) -> None:
    """Import rules are checked on imports; `require` and tables name modules as text."""
    for path in sorted((ROOT / "toolkit" / "unetx_opt" / "runtime").rglob("*.py")):
        for node in _run_time_nodes(ast.parse(path.read_bytes())):
            if _called(node) == "require" and isinstance(node, ast.Call):
                named = ast.unparse(node.args[0]).strip("'\"")
                assert named != package
                assert not named.startswith(f"{package}."), f"{_name(path)} line {node.lineno}"
