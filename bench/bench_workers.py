"""Many slides and sections: two workers against one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.harness import Row
from morphogen.core.errors import MorphogenError
from morphogen.demo.workspace import stain_model


def workers(quick: bool) -> list[Row]:
    """Two workers against one on equal slides, by the commands a user types."""
    from bench.bench_stain_slide import write_large_slide

    count, side = (4, 500) if quick else (8, 2000)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        first = write_large_slide(folder, side)
        (base / "slides").mkdir()
        for k in range(count):
            (base / "slides" / f"s{k}.ome.tif").write_bytes(first.read_bytes())
        first.unlink()
        # Steps that make slides last, as they do, beside the seconds in which a process starts.
        steps = "2" if quick else "6"
        model = ["--model", str(stain_model()), "--steps", steps]
        took: dict[int, float] = {}
        for n in (1, 2):
            out = base / f"out{n}"
            took[n] = _command(
                ["stain", "predict", str(base / "slides"), *model, "--out", str(out), "--workers", str(n)],
                {"OMP_NUM_THREADS": "1"},
            )
        same = all(
            (base / "out1" / path.name).read_bytes() == path.read_bytes()
            for path in (base / "out2").glob("*.ome.tif")
        )
        if not same:
            raise MorphogenError("two workers made other bytes than one")
        detail = (
            f"{count} slides of {side} px, {steps} steps; {took[2]:.1f} s against {took[1]:.1f} s, "
            "one thread each; equal bytes"
        )
        rows.append(
            Row("stain predict: two workers against one", took[1] / took[2], goal="≥ 1.8", detail=detail)
        )
    return rows


def predicting(quick: bool) -> list[Row]:
    """Two workers against one on equal sections of genes."""
    from bench.bench_expression import section
    from morphogen.expression import ExpressionConfig, train_model
    from morphogen.expression.sections.prepare import save_section

    count, side, genes = (4, 8, 24) if quick else (8, 20, 48)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        config = ExpressionConfig(
            recipe="stem",
            panel={"size": genes, "highly_variable": genes + 5},
            network={"genes_per_token": 4, "width": 64, "depth": 2},
            training={"steps": 2, "warmup_steps": 0},
            validation=0.0,
        )
        sections = [section(f"S{k}", f"P{k}", side, genes + 6) for k in range(count)]
        train_model(sections[:1], config, base / "trained", device="cpu")
        (base / "store").mkdir()
        for each in sections:
            save_section(each, base / "store" / f"{each.uns['morphogen']['section']['section']}.h5ad")
        model = ["--model", str(base / "trained" / "model"), "--samples", "10" if quick else "30"]
        took: dict[int, float] = {}
        for n in (1, 2):
            out = base / f"out{n}"
            took[n] = _command(
                [
                    "expression",
                    "predict",
                    str(base / "store"),
                    *model,
                    "--out",
                    str(out),
                    "--workers",
                    str(n),
                ],
                {"OMP_NUM_THREADS": "1"},
            )
        _check_equal(base / "out1", base / "out2", count)
    detail = (
        f"{count} sections of {side * side} spots × {model[-1]} samples × {genes} genes; {took[2]:.1f} s against "
        f"{took[1]:.1f} s, one thread each; equal numbers"
    )
    return [
        Row("expression predict: two workers against one", took[1] / took[2], goal="≥ 1.8", detail=detail)
    ]


def _check_equal(one: Path, two: Path, count: int) -> None:
    import anndata as ad

    found = sorted(one.glob("*.h5ad"))
    if len(found) != count:
        raise MorphogenError(f"{len(found)} of {count} sections were predicted")
    for path in found:
        a, b = ad.read_h5ad(path), ad.read_h5ad(two / path.name)
        if not all(np.array_equal(a.layers[name], b.layers[name]) for name in a.layers):
            raise MorphogenError("two workers made other numbers than one")


def _command(arguments: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "morphogen.cli.main", *arguments],
        check=True,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def run(quick: bool) -> list[Row]:
    """All of it."""
    return [*workers(quick), *predicting(quick)]
