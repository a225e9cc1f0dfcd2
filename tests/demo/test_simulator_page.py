"""The code on the simulator's page of the documentation runs as it stands, at a smaller size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "simulator.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
SMALLER = {
    "n_train=200, n_val=40, size=512": "n_train=1, n_val=1, size=64",
    "patients=3, sections=1": "patients=1, sections=1, width_um=400, height_um=400, n_genes=150",
    "n=100, size=512": "n=1, size=64",
    "Outline(5000, 4000)": "Outline(300, 250)",
    "10000, 8000": "600, 500",
}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = BLOCKS[number]
    for large, small in SMALLER.items():
        code = code.replace(large, small)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"{PAGE.name}, block {number}", "exec"), {})


def test_the_page_is_covered() -> None:
    assert len(BLOCKS) >= 3
    assert all(any(large in block for block in BLOCKS) for large in SMALLER)
