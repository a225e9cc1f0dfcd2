"""YAML and JSON from strangers: bombs, nesting, and values of another kind than asked for."""

from __future__ import annotations

import os
import time
from typing import Literal

import pytest
from pydantic import BaseModel

from morphogen.core.config import Config
from morphogen.core.errors import ConfigError, InputError
from morphogen.core.reading.documents import parse_yaml, read_document, shown


class Part(Config):
    rate: float = 1.0
    widths: tuple[int, ...] = (1,)
    kind: Literal[1, 2] = 1
    limit: int | None = None
    flag: bool = False
    name: str = "x"
    where: float | str = 0.5
    table: dict[str, float] = {}


class Whole(Config):
    part: Part = Part()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new}\n  <<: [{', '.join(['*' + old] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [BOMB, MERGE_BOMB, "name: " + BOMB.replace("\n", "\n  ").replace("a:", "\n  a:", 1), "a: &a [*a]", "[" * 100_000,
     "{a: " * 20_000, "a: " + "9" * 10_000, "a: 2020-99-99", "? [1]\n: 2", "a: [1", "\x00",
     "a: !!python/object:os.x {}", "!!binary x", "- 1", "3"],
)  # fmt: skip
def test_yaml_made_to_cost_is_refused_in_one_short_sentence(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises((InputError, ConfigError)) as error:
        Whole.load(tmp_path / "x.yaml")
    message = str(error.value).replace(str(tmp_path), "")
    assert len(message) < 260 and "\n" not in message
    assert time.monotonic() - start < 10


def test_a_pipe_or_a_folder_is_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", tmp_path):
        with pytest.raises(InputError, match="no such configuration file"):
            Whole.load(path)


def test_a_few_anchors_are_what_they_are_in_yaml(tmp_path):
    (tmp_path / "x.yaml").write_text("part: &p\n  rate: 2\n  widths: [1, 2]\n")
    assert Whole.load(tmp_path / "x.yaml").part.widths == (1, 2)
    assert parse_yaml("a: &x [1]\nb: *x\nc:\n  <<: {d: 1}") == {"a": [1], "b": [1], "c": {"d": 1}}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("rate", True, "must be a number, not true or false"),
        ("rate", "0.5", "must be a number, not text"),
        ("widths", [1, True], "must be a number"),
        ("widths", ["1"], "must be a number, not text"),
        ("widths", "12", "must be a number, not text"),
        ("kind", True, "must be a number"),
        ("limit", False, "must be a number"),
        ("table", {"a": "1"}, "must be a number"),
    ],
)
def test_text_and_truth_values_are_no_numbers(tmp_path, key, value, says):
    import yaml

    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"part": {key: value}}))
    for build in (lambda: Whole.load(tmp_path / "x.yaml"), lambda: Part(**{key: value})):
        with pytest.raises(ConfigError, match=says) as error:
            build()
        assert key in str(error.value)


def test_what_is_meant_is_taken():
    values = {"rate": 1, "widths": [1, 2], "limit": None, "flag": True, "where": "auto", "table": {"a": 1}}
    part = Part(**values)
    assert (part.rate, part.widths, part.flag, part.where) == (1.0, (1, 2), True, "auto")
    assert Whole.load(overrides={"part.rate": "1e-4", "part.limit": "7"}).part.rate == 1e-4
    with pytest.raises(ConfigError, match="must be a number, not text"):
        Whole.load(overrides={"part.rate": "fast"})


class File(BaseModel):
    mpp: float
    files: dict[str, str]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "valid dictionary or an instance of File|object"),
        ('{"mpp": "0.5", "files": {}}', "'mpp' is '0.5', but"),
        ('{"mpp": true, "files": {}}', "'mpp' is True, but"),
        ('{"mpp": 1}', "'files' is missing"),
        ('{"mpp": 1, "files": {"a": 3}}', "'files.a' is 3"),
        ("[" * 200_000, "nests too deeply|not a valid JSON"),
        ('{"mpp": ' + "9" * 10_000 + "}", "JSON"),
        ("{", "not a valid JSON"),
    ],
)
def test_json_of_another_structure_is_refused(tmp_path, text, says):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=says) as error:
        read_document(tmp_path / "x.json", File)
    assert len(str(error.value).replace(str(tmp_path), "")) < 260 and "\n" not in str(error.value)


def test_long_values_are_cut_in_messages():
    assert len(shown("x" * 10_000)) < 70 and shown([[1] * 9] * 9).count("1") < 20
    with pytest.raises(ConfigError) as error:
        Part(flag="x" * 10_000)
    assert len(str(error.value)) < 250
