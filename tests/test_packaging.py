"""What a user gets from `pip install`, seen from an environment that holds the base dependencies and nothing else.

Nothing is downloaded: the base dependencies are links to those of the environment that runs the tests.
"""

from __future__ import annotations

import configparser
import email
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from unetx_opt.cli.table import COMMANDS
from unetx_opt.models.variants import VARIANTS
from unetx_opt.optional import EXTRAS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "unetx_opt": "toolkit",
    "unetx_kernels": "kernels",
    "unetx_exporters": "exporters",
    "unetx_bench": "benchmarks",
}
# Modules that define torch modules or tensor code, and the package whose subject is an ONNX graph. Every other
# module imports without any optional package.
NEEDS_TORCH = {
    "unetx_opt.models.attention",
    "unetx_opt.models.blocks",
    "unetx_opt.models.unet",
    "unetx_opt.training.losses",
    "unetx_opt.training.loop",
    "unetx_opt.training.run",
}
# Packages whose modules may need an extra, as long as they say which: no workstation has them.
NOT_ON_A_WORKSTATION = ("unetx_exporters.", "unetx_bench.")
# Module of an optional package -> its distribution, where the names differ.
DISTRIBUTIONS = {
    "cuda": "cuda-bindings",
    "cyclonedx": "cyclonedx-python-lib",
    "pydensecrf": "pydensecrf2",
    "prometheus_client": "prometheus-client",
    "pynvml": "nvidia-ml-py",
    "tensorrt_rtx": "tensorrt-rtx",
}

_IMPORT_EACH = """
import importlib, json, sys
from unetx_opt.errors import MissingPackageError
outcome = {}
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
        outcome[name] = ""
    except MissingPackageError as error:
        outcome[name] = f"MissingPackageError: {error}"
    except BaseException as error:
        outcome[name] = f"{type(error).__name__}: {error}"
json.dump(outcome, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Install:
    """An environment with one way of having the project installed."""

    folder: Path

    @property
    def scripts(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    def run(self, program: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program of the environment with nothing of the caller's Python settings, in an empty folder."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return subprocess.run(
            [self.scripts / program, *arguments],
            input=stdin,
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build("build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session", params=["wheel", "editable"])
def bare_install(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Install:
    folder = tmp_path_factory.mktemp(f"bare-{request.param}")
    built = (
        request.getfixturevalue("wheel") if request.param == "wheel" else _build("build_editable", folder / "dist")
    )
    venv.create(folder / "venv", with_pip=False, symlinks=os.name != "nt")
    install = Install(folder / "venv")
    _pip("--python", str(install.scripts / "python"), "install", "--no-deps", "--no-index", str(built))
    site_packages = Path(
        install.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    )
    _link_distributions(_closure(_base_requirements(request.getfixturevalue("wheel"))), site_packages)
    return install


def _build(hook: str, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    program = f"import sys, hatchling.build as backend; print(backend.{hook}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, folder], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        env={**os.environ, "PIP_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _base_requirements(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    return [requirement for requirement in requirements if _applies(requirement, "")]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _closure(requirements: Iterable[Requirement]) -> dict[str, importlib.metadata.Distribution]:
    """Return the installed distributions that the requirements lead to, by normalised name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = _normalised(requirement.name)
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            pytest.fail(f"{requirement} is not installed: run make test or make check, which install it")
        needed = [Requirement(text) for text in found[name].requires or []]
        waiting += [inner for inner in needed if any(_applies(inner, extra) for extra in {"", *requirement.extras})]
    return found


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _link_distributions(distributions: dict[str, importlib.metadata.Distribution], site_packages: Path) -> None:
    for distribution in distributions.values():
        tops = {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}
        for top in tops:
            target, link = Path(str(distribution.locate_file(top))), site_packages / top
            if not link.exists():
                link.symlink_to(target, target_is_directory=target.is_dir())


def _modules() -> list[str]:
    """Return the dotted name of every module of the source tree."""
    names = []
    for package, source_root in PACKAGES.items():
        for path in sorted((ROOT / source_root / package).rglob("*.py")):
            parts = path.relative_to(ROOT / source_root).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def _project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_module_imports_in_a_bare_install_or_names_the_extra_it_needs(bare_install: Install) -> None:
    done = bare_install.run("python", "-I", "-c", _IMPORT_EACH, stdin=json.dumps(_modules()))
    assert done.returncode == 0, done.stderr
    outcome: dict[str, str] = json.loads(done.stdout)
    refused = {name: text for name, text in outcome.items() if text}
    others = {name: text for name, text in refused.items() if not text.startswith("MissingPackageError: ")}
    assert others == {}
    assert {name for name in refused if not name.startswith(NOT_ON_A_WORKSTATION)} == NEEDS_TORCH
    assert all(re.search(r"unetx-opt\[\w", text) for text in refused.values())


@pytest.mark.parametrize("command", ["", *COMMANDS], ids=lambda name: name or "group")
def test_help_works_in_a_bare_install(bare_install: Install, command: str) -> None:
    done = bare_install.run("unetx-opt", *filter(None, [command]), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: unetx-opt {command}".rstrip())
    assert done.stderr == ""


def test_a_missing_extra_is_one_line_that_names_it(bare_install: Install) -> None:
    done = bare_install.run(
        "unetx-opt", "build", "--variant", "unet", "--precision", "fp32", "-o", str(bare_install.folder / "bundle")
    )
    assert done.returncode == 1
    assert re.fullmatch(r"error: .*pip install 'unetx-opt\[\w+\]'\n", done.stderr)
    assert not (bare_install.folder / "bundle").exists()


def test_the_wheel_holds_every_module_and_nothing_of_the_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        str(path.relative_to(ROOT / source_root).as_posix())
        for package, source_root in PACKAGES.items()
        for path in (ROOT / source_root / package).rglob("*.py")
    }
    assert sources <= names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    leftovers = re.compile(r"(^|/)(test_[^/]*|conftest)\.py$|\.pyc$")
    assert [name for name in names if leftovers.search(name)] == []


def test_the_wheel_holds_types_schema_weights_and_licences(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert "unetx_opt/bundle/manifest.schema.json" in names
    weights = {name for name in names if name.endswith(".safetensors")}
    reference = "unetx_opt/models/reference"
    assert {f"{reference}/{variant}.safetensors" for variant in ("unet", "attention")} <= weights
    assert weights <= {f"{reference}/{variant}.safetensors" for variant in VARIANTS}
    assert {name.replace(".safetensors", ".md") for name in weights} <= names
    licences = {name.partition(".dist-info/")[2] for name in names if ".dist-info/licenses/" in name}
    assert licences == {"licenses/LICENSE", "licenses/LICENSE-WEIGHTS.md"}


def test_the_wheel_offers_the_one_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        points = configparser.ConfigParser()
        points.read_string(archive.read(name).decode())
    assert dict(points["console_scripts"]) == {"unetx-opt": "unetx_opt.cli.main:main"}


@pytest.mark.parametrize(("module", "extra"), EXTRAS.items(), ids=lambda value: value)
def test_the_extra_that_an_error_names_brings_the_module(module: str, extra: str) -> None:
    extras = _project()["optional-dependencies"]
    assert isinstance(extras, dict)
    assert extra in extras
    brought = {_normalised(Requirement(text).name) for text in extras[extra]}
    assert DISTRIBUTIONS.get(module, module) in brought


def test_every_package_that_an_installation_brings_is_pinned() -> None:
    project = _project()
    wanted = ["export", "cpu", "rtx", "dicom", "dev"]
    extras, base = project["optional-dependencies"], project["dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(base, list)
    texts = [*base, *(text for extra in wanted for text in extras[extra])]
    installed = _closure(requirement for requirement in map(Requirement, texts) if _applies(requirement, ""))
    pinned = {_normalised(Requirement(line).name) for line in _pins()}
    # torch's own exact requirements where it comes with CUDA; see the head of constraints.txt.
    brought_by_torch = re.compile(r"nvidia-|cuda-|triton")
    assert [name for name in sorted(installed) if name not in pinned and not brought_by_torch.match(name)] == []


def test_a_pin_is_one_exact_version_and_no_place_to_download_from() -> None:
    for line in _pins():
        requirement = Requirement(line)
        assert requirement.url is None
        assert re.fullmatch(r"==[^+*,]+", str(requirement.specifier)), line


def _pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]
