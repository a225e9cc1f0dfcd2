"""The page says what the code does: its examples run, and its table of settings is the configuration's."""

from __future__ import annotations

import re
from pathlib import Path

from morphogen.core.config import describe
from morphogen.training import TrainingConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def settings_table() -> str:
    rows = [f"| `{name}` | {default} | {meaning} |" for name, default, meaning in describe(TrainingConfig)]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(PAGE), "exec"), names)
    assert capsys.readouterr().out.startswith("200 ")
    assert (tmp_path / "circle/best").is_dir() and names["draws"].integers(5).shape == (8,)


def test_table_of_settings_is_the_configuration():
    page = PAGE.read_text(encoding="utf-8")
    shown = re.search(r"<!-- settings -->\n(.*?)\n<!-- /settings -->", page, re.S).group(1)
    assert shown == settings_table()
