"""Everything that docs/checkpoints.md shows works: its commands and its Python, on small files in its formats."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from morphogen.cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"


def random_stem(manifest: Path) -> dict[str, torch.Tensor]:
    """Stem at its published width, cut to one block."""
    state = {}
    for line in manifest.read_text().splitlines():
        key, shape = line.split("\t")
        if not re.match(r"blocks\.[1-9]", key):
            state[key] = 0.02 * torch.randn([int(side) for side in shape.split("x")])
    return state


def test_the_page(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "ema": random_stem(shared / "manifests" / "stem.tsv"), "opt": {}}, "stem.pt")
    Path("genes.txt").write_text("\n".join(f"GENE{i}" for i in range(200)))
    Path("large_image.ckpt").symlink_to(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt")
    Path("histdist").symlink_to(shared / "fixtures" / "histdist_inference" / "pipeline")
    blocks = re.findall(r"```(console|python)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert {kind for kind, _ in blocks} == {"console", "python"}
    for kind, text in blocks:
        # The stand-in is smaller than the published model, whose heads are known.
        text = text.replace('load_ldm("large_image.ckpt")', 'load_ldm("large_image.ckpt", heads=1)')
        text = text.replace("import large_image.ckpt", "import large_image.ckpt --heads 1")
        if kind == "python":
            values: dict = {}
            exec(compile(text, str(PAGE), "exec"), values)
            if "again" in values:
                assert values["output"].shape == (2, 2, 200)
                torch.testing.assert_close(values["again"], values["output"])
            continue
        for line in text.strip().splitlines():
            with pytest.raises(SystemExit) as stop:
                main(shlex.split(line.removeprefix("$ morphogen ")))
            assert not stop.value.code, capsys.readouterr().err
    for folder in ("stem", "tissue", "stain", "mine"):
        assert (tmp_path / "models" / folder / "morphogen.json").is_file()
