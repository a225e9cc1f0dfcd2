"""The documentation of the texture encoder says what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "scripts" / "texture_table.py"


def test_table_of_families_is_up_to_date() -> None:
    specification = importlib.util.spec_from_file_location("texture_table", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.written(text) == text, f"run python {SCRIPT.name}"
