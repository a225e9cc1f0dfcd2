"""A copy without a server, and the command."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from morphogen.cli.main import main
from morphogen.core.errors import ConfigError, InputError, OutputError
from morphogen.view import open_view
from morphogen.view.config import ViewConfig
from morphogen.view.export import export_view, parse_region
from morphogen.view.site import PARTS

from .conftest import GENES


def handed(text: str) -> tuple[str, object]:
    """Name and value of a data script."""
    name, value = json.loads("[" + text.removeprefix("morphogenData(").removesuffix(");\n") + "]")
    return name, value


@pytest.fixture(scope="module")
def view(results):
    named = [
        results / name
        for name in ("slide.ome.tif", "slide_uncertainty.ome.tif", "genes.h5ad", "cells.geojson")
    ]
    return open_view(named, ViewConfig(tile=256))


def test_the_copy_holds_what_the_server_gives(view, tmp_path):
    made = export_view(view, tmp_path / "copy", genes=[GENES[2], "ERBB2"])
    files = {
        path.relative_to(tmp_path / "copy").as_posix()
        for path in (tmp_path / "copy").rglob("*")
        if path.is_file()
    }
    assert {"index.html", "view.js", "openseadragon.LICENSE.txt", *PARTS} <= files and made.files == len(
        files
    )
    tiles = {name for name in files if name.startswith("tiles/0/")}
    assert len(tiles) == 30 + 9 + 4 + 1  # 6 × 5 tiles of 256 px, and the levels above
    first = (tmp_path / "copy/tiles/0/colour/3/2_1.jpg").read_bytes()
    assert first == view.image(0).tile_bytes("colour", 3, 2, 1)
    name, text = handed((tmp_path / "copy/values/2/1/0.f32.js").read_text())
    assert name == "values/2/1/0.f32"
    assert np.array_equal(np.frombuffer(base64.b64decode(str(text)), "<f4"), view.spots(2).values(1, 2))
    described = handed((tmp_path / "copy/view.js").read_text())[1]
    assert described["static"] and described["layers"][2]["genes"] == [GENES[2], "ERBB2"]
    assert described["layers"][0]["modes"] == ["colour"]
    assert not re.search(
        r"https?://(?!www\.w3\.org|openseadragon)", (tmp_path / "copy/index.html").read_text()
    )


def test_a_region_bounds_the_tiles(view, tmp_path):
    export_view(view, tmp_path / "copy", region=(600.0, 300.0, 200.0, 150.0))
    finest = sorted(path.name for path in (tmp_path / "copy/tiles/0/colour/3").iterdir())
    assert finest == ["2_1.jpg", "3_1.jpg"]
    assert handed((tmp_path / "copy/view.js").read_text())[1]["region"] == [600, 300, 200, 150]


def test_a_folder_of_something_else_is_left_alone(view, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(OutputError, match="something else"):
        export_view(view, tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]
    with pytest.raises(InputError, match="Did you mean 'ERBB2'"):
        export_view(view, tmp_path / "copy", genes=["ERBB3"])
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "-1,0,5,5", "5000,0,5,5", "0,0,0,5", "nan,0,5,5"])
def test_regions_that_cannot_be_are_refused(view, text):
    with pytest.raises(ConfigError):
        parse_region(text, view)
    assert parse_region("1400,1000,500,500", view) == (1400, 1000, 100, 100)


def test_the_command_writes_a_copy(results, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "view",
                str(results / "slide.ome.tif"),
                "--export",
                str(tmp_path / "copy"),
                "--tile",
                "256",
                "--json",
            ]
        )
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["page"].endswith("copy/index.html") and said["files"] > 44
    with pytest.raises(SystemExit) as ended:
        main(["view", str(tmp_path / "none.svs")])
    assert ended.value.code == 2 and "no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(results):
    command = [
        sys.executable,
        "-m",
        "morphogen.cli.main",
        "view",
        str(results / "slide.ome.tif"),
        "--no-browser",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        lines = []
        while not (lines and lines[-1].startswith("}")):
            lines.append(running.stdout.readline())
        address = json.loads("".join(lines))["address"]
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.status == 200
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0
        assert "Traceback" not in running.stderr.read()
