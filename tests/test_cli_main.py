"""The frame of the command line: starting without torch, help, errors, interrupts, a reader that goes away."""

import argparse
import subprocess
import sys
from types import SimpleNamespace

import pytest

from radar.cli.main import COMMANDS, REPORT, Command, main
from radar.errors import BusyError, NotFoundError, NumericalError, UsageError

HEAVY = ("torch", "transformers", "triton", "numpy", "tqdm")


def python(*words, **options):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize(
    ("words", "status"), [(["--help"], 0), (["generate", "--help"], 0), (["generate", "x", "--colour"], 2), ([], 2)]
)
def test_help_and_typing_errors_import_nothing_heavy(words, status):
    watched = f"""
import sys
from radar.cli import main
try:
    main({words!r})
except SystemExit as end:
    assert end.code == {status}, end.code
print("heavy:", [name for name in {HEAVY} if name in sys.modules])
"""
    done = python("-c", watched)
    assert done.stdout.endswith("heavy: []\n"), done.stdout + done.stderr


@pytest.mark.parametrize("module", ["radar", "radar.cli"])
def test_the_modules_run(module):
    done = python("-m", module, "--help", check=True)
    for command in COMMANDS:
        assert f"    {command.name}" in done.stdout


def test_version_names_what_is_installed(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    out = capsys.readouterr().out
    assert out.startswith("radar ")
    for name in ("Python 3.", "torch 2.", "transformers 5."):
        assert name in out


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    capsys.readouterr()
    parser = argparse.ArgumentParser()
    next(item for item in COMMANDS if item.name == command).module.add_arguments(parser)
    assert [action.dest for action in parser._actions if not action.help and action.dest != "seed"] == []
    assert parser.description


@pytest.fixture
def fails(monkeypatch):
    """`fails(error)` is a command `fail` that raises the error."""

    def make(error):
        def run(args):
            raise error

        module = SimpleNamespace(add_arguments=lambda parser: None, run=run)
        monkeypatch.setattr(Command, "module", module)
        return lambda *words: main(["generate", *words])

    return make


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("the number\n  is odd"), "the number is odd"),
        (NotFoundError("no such file: x"), "no such file: x"),
        (NumericalError("scores hold NaN"), "scores hold NaN"),
        (IsADirectoryError(21, "Is a directory", "/here"), "[Errno 21] Is a directory: '/here'"),
    ],
)
def test_a_mistake_is_one_line_and_with_debug_a_traceback(error, line, fails, capsys):
    radar = fails(error)
    assert radar() == 2
    assert capsys.readouterr().err == f"radar generate: {line}\n"
    assert radar("--debug") == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith(f"radar generate: {line}\n")


@pytest.mark.parametrize(
    "error", [ValueError("math domain error"), RuntimeError("boom"), BusyError("busy"), KeyError(2)]
)
def test_a_bug_keeps_its_traceback(error, fails, capsys):
    assert fails(error)() == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "in run\n    raise error" in err
    assert err.endswith(REPORT + "\n")


def test_ctrl_c_is_said_whatever_an_import_makes_of_it(fails, capsys):
    assert fails(KeyboardInterrupt())() == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
    broken = ImportError("initialization failed")
    broken.__cause__ = KeyboardInterrupt()
    assert fails(broken)() == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_ctrl_c_while_torch_is_imported():
    """The press comes from the finder, in the middle of the imports of a command."""
    script = """
import sys
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.nn":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Press())
from radar.cli import main
sys.exit(main(["generate", "x"]))
"""
    done = python("-c", script)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "\ninterrupted\n"


@pytest.mark.parametrize("words", ["--help", "generate --help"])
def test_a_reader_that_goes_away_is_no_error(words):
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m radar {words} | true"], capture_output=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--help", "generate x --max-new-tokens 2 --device cpu"])
def test_a_stdout_that_was_closed_is_no_error(words):
    command = f'"{sys.executable}" -m radar {words} >&-'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
