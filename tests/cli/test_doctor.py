"""``morphogen doctor`` says what works here and what to do about the rest."""

import json

import pytest

from morphogen.cli.main import main


def _doctor(capsys, *options):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *options])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_facts_as_json(tmp_path, capsys):
    facts = json.loads(_doctor(capsys, "--json", "--folder", str(tmp_path)))
    assert facts["versions"]["torch"] and facts["slides"]["openslide"]
    assert facts["devices"]["cpu_cores"] >= 1 and facts["disk"]["free_gib"] > 0
    encoders = {row["name"]: row for row in facts["encoders"]}
    assert encoders["texture"]["offline"] and encoders["texture"]["advice"] in ("", None)
    assert encoders["uni"]["gated"]


def test_what_is_missing_comes_with_what_to_do(capsys, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/nowhere")
    text = _doctor(capsys)
    assert "Encoders that load offline" in text and "Encoders that need something first" in text
    uni = next(line for line in text.splitlines() if line.split()[:1] == ["uni"])
    assert "--weights" in uni


def test_an_unwritable_folder_is_said(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    text = _doctor(capsys, "--folder", str(tmp_path / "file"))
    assert "in the way" in text
