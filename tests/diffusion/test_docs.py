"""The page says what the code does: its examples run, and its table is what the benchmark writes."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "diffusion.md"


def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(PAGE), "exec"), names)
    assert capsys.readouterr().out.split("\n") == ["(2, 200)", "True", "True", "True", ""]


@pytest.mark.slow
def test_the_table_is_the_one_the_benchmark_writes():
    from bench.bench_diffusion import table

    shown = re.search(r"<!-- spread -->\n(.*?)\n<!-- /spread -->", PAGE.read_text(encoding="utf-8"), re.S)
    assert shown is not None

    def numbers(text):
        return [float(each) for each in re.findall(r"\d+\.\d+", text)]

    assert numbers(shown[1]) == pytest.approx(numbers(table()), abs=0.02)
