"""The command line: errors are one line and exit 2, settings reach the configuration, help is quick to build."""

import subprocess
import sys

import pytest

from morphogen.cli import common, main
from morphogen.core.config import Config
from morphogen.core.errors import ConfigError, InputError


class Training(Config):
    lr: float = 1e-3
    steps: int = 10


class Run(Config):
    training: Training = Training()
    name: str = "x"


@pytest.mark.parametrize(
    ("given", "folded"),
    [
        (["train", "--a.b", "3"], ["train", "--set=a.b=3"]),
        (["--a.b=3", "x"], ["--set=a.b=3", "x"]),
        (["--a.b", "-3.5", "x"], ["--set=a.b=-3.5", "x"]),
        (["--a.flag", "--out", "o"], ["--set=a.flag=true", "--out", "o"]),
        (["--a.b.c-d", "x=y"], ["--set=a.b.c-d=x=y"]),
        (["--out", "a.b", "--", "--a.b"], ["--out", "a.b", "--", "--a.b"]),
    ],
)
def test_settings_are_folded(given, folded):
    assert common.fold_settings(given) == folded


def test_file_then_settings_then_options(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training: {lr: 0.5, steps: 5}\n")
    config = common.load_config(Run, path, ["training.lr=0.25"], training__steps=7, name=None)
    assert config == Run(training=Training(lr=0.25, steps=7))
    with pytest.raises(ConfigError, match="Did you mean 'lr'"):
        common.load_config(Run, None, ["training.lrr=1"])


def test_show_settings_prints_and_stops(capsys):
    common.fold_settings(["--show-settings"])
    with pytest.raises(SystemExit) as stop:
        common.load_config(Run, None, ["training.lr=0.25"])
    common._state["show_settings"] = False
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and "--training.lr" in printed and "0.25" in printed


def _run(monkeypatch, behaviour, tokens=("verb",)):
    from cyclopts import App

    app = App(name="morphogen", result_action="return_value")
    app.command(behaviour, name="verb")
    monkeypatch.setattr(main, "build_app", lambda: app)
    with pytest.raises(SystemExit) as stop:
        main.main(list(tokens))
    return stop.value.code


def test_bad_input_is_one_line_and_exit_2(monkeypatch, capsys):
    def verb():
        raise InputError("this is not a slide", where="a.svs", fix="Give another file")

    assert _run(monkeypatch, verb) == 2
    assert capsys.readouterr().err == "morphogen: a.svs: this is not a slide. Give another file.\n"


def test_a_full_disk_is_one_line_and_exit_2(monkeypatch, capsys):
    def verb():
        raise OSError(28, "No space left on device", "out.tif")

    assert _run(monkeypatch, verb) == 2
    assert "out.tif: the disk is full" in capsys.readouterr().err


def test_status_of_a_verb_and_of_wrong_options(monkeypatch, capsys):
    assert _run(monkeypatch, lambda: 1) == 1
    assert _run(monkeypatch, lambda: None) == 0
    assert _run(monkeypatch, lambda: None, ["verb", "--nope", "3"]) == 2
    assert "--nope" in capsys.readouterr().err

    def interrupted():
        raise KeyboardInterrupt

    assert _run(monkeypatch, interrupted) == 130


def test_debug_shows_the_traceback(monkeypatch):
    from cyclopts import App

    app = App(name="morphogen", result_action="return_value")

    @app.command(name="verb")
    def verb():
        raise InputError("x")

    monkeypatch.setattr(main, "build_app", lambda: app)
    with pytest.raises(InputError):
        main.main(["verb", "--debug"])


def test_help_and_version_run():
    done = subprocess.run(
        [sys.executable, "-m", "morphogen.cli.main", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "doctor" in done.stdout


def test_unknown_command_is_exit_2():
    done = subprocess.run([sys.executable, "-m", "morphogen", "slidee"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("morphogen: ") and done.stderr.count("\n") == 1


def test_settings_without_a_section_are_taken_too(monkeypatch, capsys):
    seen = []

    def verb(*, out: str, settings: common.Settings = ()):
        seen.append((out, common.load_config(Run, None, settings)))

    assert _run(monkeypatch, verb, ["verb", "--name", "y", "--out", "o", "--training.steps=3"]) == 0
    assert seen == [("o", Run(training=Training(steps=3), name="y"))]
    assert _run(monkeypatch, verb, ["verb", "--out", "o", "--nam", "y"]) == 2
    assert "Unknown option: --nam." in capsys.readouterr().err and len(seen) == 1

    def plain(*, out: str):
        seen.append(out)

    assert _run(monkeypatch, plain, ["verb", "--out", "o", "--name", "y"]) == 2
    assert "Unknown option: --name." in capsys.readouterr().err and len(seen) == 1
