"""Signals end a command in one sentence; what libraries print stays out of the way; sentences are short."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from morphogen.core.errors import InputError, OutputError, shortened
from morphogen.core.files import system_error

COMMAND = """
import ctypes, logging, os, sys, time, warnings
from cyclopts import App
from morphogen.cli import main, process
from morphogen.core.errors import InputError

app = App(name="morphogen", result_action="return_value", suppress_keyboard_interrupt=False)

@app.command
def wait():
    print("ready", flush=True)
    time.sleep(60)

@app.command
def threads():
    process.GRACE = 0.5
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(2) as pool:
        pool.submit(time.sleep, 60)
        print("ready", flush=True)
        time.sleep(60)

@app.command
def noise():
    warnings.warn("a library about itself")
    logging.getLogger("tifffile").error("<tifffile.TiffPage 0> corrupted")
    logging.getLogger("morphogen.slides").warning("this is ours")
    c = ctypes.CDLL(None)
    c.dprintf(2, b"TIFFReadDirectory: Warning, Unknown field.\\n")
    c.dprintf(2, b"something else in C\\n")
    raise InputError("bad", where="x.tif")

main.build_app = lambda: app
main.main()
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    path = tmp_path_factory.mktemp("command") / "command.py"
    path.write_text(textwrap.dedent(COMMAND))
    return [sys.executable, str(path)]


@pytest.mark.parametrize(
    ("verb", "number", "status", "said"),
    [
        ("wait", signal.SIGINT, 130, "morphogen: Interrupted; finished work is kept"),
        ("wait", signal.SIGTERM, 143, "morphogen: Told to end; finished work is kept"),
        ("threads", signal.SIGINT, 130, "morphogen: Interrupted"),
    ],
)
def test_a_signal_ends_in_one_sentence(command, verb, number, status, said):
    with subprocess.Popen(
        [*command, verb], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        err = process.communicate(timeout=15)[1]
    assert process.returncode == status
    assert err.strip().startswith(said) and err.strip().count("\n") == 0


def test_what_libraries_print_goes_to_debug_only(command):
    quiet = subprocess.run([*command, "noise"], capture_output=True, text=True, check=False)
    assert quiet.returncode == 2
    assert sorted(quiet.stderr.splitlines()) == [
        "morphogen: x.tif: bad.",
        "note: this is ours",
        "something else in C",
    ]
    debug = subprocess.run([*command, "noise", "--debug"], capture_output=True, text=True, check=False)
    for line in ("a library about itself", "corrupted", "TIFFReadDirectory", "Traceback"):
        assert line in debug.stderr


def test_sentences_are_short_and_keep_what_matters():
    path = "/data/" + "very/" * 80 + "slide.svs"
    for error in (
        InputError("x" * 700, where=path, fix="Do " + "this " * 60),
        InputError("the column 'mpp' holds " + "9" * 5000, where="t.csv line 3", fix="Mend it"),
        InputError("short", where=path, fix="Give another file"),
    ):
        assert len(str(error)) <= 300 and "\n" not in str(error)
    assert str(error).endswith("slide.svs: short. Give another file.")
    assert "Mend it." in str(InputError("x" * 900, where="a", fix="Mend it"))
    assert shortened("a" * 100, 21) == "a" * 12 + " … " + "a" * 6
    plain = InputError("this is not a slide", where="a.svs", fix="Give another file")
    assert str(plain) == "a.svs: this is not a slide. Give another file."


def test_errors_of_the_system_tell_reading_from_writing():
    read = system_error(FileNotFoundError(2, os.strerror(2), "a.svs"))
    assert isinstance(read, InputError) and str(read) == "a.svs: there is no such file or folder."
    assert isinstance(system_error(OSError(28, os.strerror(28), "b")), OutputError)
    assert "cannot be used (Is a directory)" in str(system_error(IsADirectoryError(21, os.strerror(21), "c")))


def test_commands_begin_before_the_libraries_of_networks_are_loaded(tmp_path):
    """A path that is not there is told before diffusers and transformers, which take seconds, are imported."""
    script = """
import sys
from morphogen.cli.main import main
codes = []
for line in sys.argv[1:]:
    try:
        main(line.split("|"))
        codes.append(0)
    except SystemExit as end:
        codes.append(end.code)
heavy = sorted({"diffusers", "transformers", "torch._dynamo", "accelerate", "sklearn"} & set(sys.modules))
print(codes, heavy)
"""
    missing = str(tmp_path / "missing")
    out = f"--out|{tmp_path / 'out'}"
    lines = [
        f"stain|predict|{missing}|--model|demo|{out}",
        f"stain|train|{missing}|{out}",
        f"tissue|train|{missing}|{out}",
        f"tissue|canvas|--model|{missing}|--like|{missing}|{out}",
        f"layout|train|{missing}|{out}",
        f"layout|segment|{missing}|--model|{missing}|{out}",
        f"expression|predict|{missing}|--model|{missing}|{out}",
        f"slide|encode|{missing}|{out}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *lines], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip().splitlines()[-1] == f"{[2] * len(lines)} []", done.stderr
