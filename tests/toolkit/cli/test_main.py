from __future__ import annotations

import errno
import subprocess
import sys
import types
from collections.abc import Callable

import click
import pytest

from unetx_opt import __version__
from unetx_opt.cli import main as main_module
from unetx_opt.cli.main import main
from unetx_opt.cli.table import COMMANDS, CommandRow
from unetx_opt.errors import GateError, MissingPackageError, UnetxError

# Everything that takes time to import and that no help text needs.
_HEAVY = (
    "PIL",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "pydantic",
    "pydicom",
    "rich",
    "safetensors",
    "scipy",
    "tensorrt_rtx",
    "torch",
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Put one command, `work`, into the table; it does what it is given."""

    def install(body: Callable[[], object]) -> None:
        module = types.ModuleType("commands_of_a_test")
        module.work = click.command("work")(lambda: body() and None)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(main_module, "COMMANDS", {"work": CommandRow(f"{module.__name__}:work", "Works.")})

    return install


def _raising(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


def test_a_command_that_ends_well_exits_0(command, capsys: pytest.CaptureFixture[str]) -> None:
    command(lambda: click.echo("done"))
    assert main(["work"]) == 0
    assert capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        pytest.param(UnetxError("got 3, expected 4:\n  do this"), 1, "got 3, expected 4: do this", id="own"),
        pytest.param(GateError("dice fell"), 3, "dice fell", id="gate"),
        pytest.param(click.ClickException("plain"), 1, "plain", id="click"),
        pytest.param(
            PermissionError(errno.EACCES, "Permission denied", "/x/y"),
            1,
            "[Errno 13] Permission denied: '/x/y'",
            id="forbidden-path",
        ),
        pytest.param(
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "[Errno 28] No space left on device",
            id="full-disk",
        ),
        pytest.param(KeyboardInterrupt(), 130, "interrupted", id="keyboard"),
    ],
)
def test_an_error_of_the_user_is_one_line_on_stderr_and_an_exit_code(
    command, capsys: pytest.CaptureFixture[str], error: BaseException, exit_code: int, line: str
) -> None:
    command(_raising(error))
    assert main(["work"]) == exit_code
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_debug_shows_the_traceback_before_the_line(command, capsys: pytest.CaptureFixture[str]) -> None:
    command(_raising(UnetxError("broken")))
    assert main(["--debug", "work"]) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("Traceback")
    assert stderr.endswith("\nerror: broken\n")


@pytest.mark.parametrize("error", [ValueError("x"), OSError("no file in it"), BrokenPipeError("not stdout")])
def test_a_defect_escapes_with_its_traceback(command, error: Exception) -> None:
    command(_raising(error))
    with pytest.raises(type(error)) as caught:
        main(["work"])
    assert caught.value is error


def test_a_command_may_choose_its_exit_code(command) -> None:
    command(_raising(click.exceptions.Exit(3)))
    assert main(["work"]) == 3


def test_a_command_whose_package_is_missing_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> types.ModuleType:
        raise MissingPackageError("building needs torch: run pip install 'unetx-opt[export]'")

    monkeypatch.setattr(main_module.importlib, "import_module", refuse)
    assert main(["build", "--variant", "unet"]) == 1
    assert capsys.readouterr().err == "error: building needs torch: run pip install 'unetx-opt[export]'\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["--nonsense"], ["work", "--nonsense"], []], ids=lambda a: " ".join(a) or "none"
)
def test_bad_usage_exits_2_and_prints_nothing_on_stdout(
    command, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    command(lambda: None)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage: unetx-opt" in captured.err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"unetx-opt {__version__}\n"


def test_help_lists_every_row_of_the_table_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert [line.split(maxsplit=1) for line in listed] == [[name, row.summary] for name, row in COMMANDS.items()]


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)], ids=lambda a: " ".join(a) or "group")
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = f"""
import sys
from unetx_opt.cli.main import main
assert main({[*arguments, "--help"]!r}) == 0
print("heavy:", *sorted(set({_HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")
    assert done.stderr.splitlines()[-1] == "heavy:"


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is another error there")
def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    program = "import sys; from unetx_opt.cli.main import main; sys.exit(main(['--help']))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (141, b"")
