"""Is a result there, of another job, or does it go on? And which facts differ."""

from __future__ import annotations

import json
import os

import pytest

from morphogen.core import fingerprints
from morphogen.core.errors import ConfigError, InputError, OutputError
from morphogen.core.fingerprints import fingerprint
from morphogen.core.jobs import Job, kept_facts

FACTS = {"model": "a" * 64, "sampler": {"steps": 20, "eta": None}, "stains": ["ER", "PR"]}


def test_a_job_begins_once_and_then_goes_on(tmp_path):
    record = tmp_path / "out" / "job.json"
    assert Job(FACTS).begin(record, "images") is False
    assert json.loads(record.read_text()) == FACTS
    assert Job(FACTS).begin(record, "images") is True


def test_what_differs_is_named_with_short_values(tmp_path):
    Job(FACTS).begin(tmp_path / "job.json", "images")
    other = {"model": "b" * 64, "sampler": {"steps": 5, "eta": 1.0}, "stains": ["ER"]}
    with pytest.raises(OutputError) as caught:
        Job(other).begin(tmp_path / "job.json", "images", fix="Choose another folder")
    assert str(caught.value) == (
        f"{tmp_path}: holds images of another run (other model; sampler.steps was 20, now 5; other sampler.eta; "
        "other stains). Choose another folder."
    )
    assert json.loads((tmp_path / "job.json").read_text()) == FACTS  # and nothing was written
    with pytest.raises(ConfigError):
        Job(other).begin(tmp_path / "job.json", "images", error=ConfigError)


def test_many_differences_stay_one_short_sentence(tmp_path):
    facts = {f"key {i}": "x" * 500 for i in range(50)}
    Job(facts).begin(tmp_path / "job.json", "images")
    with pytest.raises(OutputError, match="46 more") as caught:
        Job(dict.fromkeys(facts, "y" * 500)).begin(tmp_path / "job.json", "images")
    assert len(str(caught.value)) < 300


def test_free_facts_may_change_and_newer_ones_may_be_missing():
    job = Job({**FACTS, "workers": 4, "slide": "f" * 64}, free={"workers"}, newer={"slide"})
    assert job.same({**FACTS, "workers": 1})
    assert not job.same({**FACTS, "slide": "e" * 64})
    assert job.mark == Job({**FACTS, "workers": 9, "slide": "f" * 64}, free={"workers"}).mark


def test_a_removed_setting_counts_and_notes_beside_the_facts_do_not():
    kept = {**FACTS, "sampler": {"steps": 20, "eta": None, "gone": 1}, "id": "abc"}
    assert [str(each) for each in Job(FACTS).differences(kept)] == ["other sampler.gone"]
    assert Job(FACTS).same({**FACTS, "id": "abc", "seconds": 3.0})


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00\x00"])
def test_a_record_cut_short_blocks_nobody(tmp_path, content):
    (tmp_path / "job.json").write_text(content)
    assert kept_facts(tmp_path / "job.json") is None
    assert Job(FACTS).begin(tmp_path / "job.json", "images") is False
    assert Job(FACTS).begin(tmp_path / "job.json", "images") is True


def test_a_fingerprint_is_of_contents_alone(tmp_path):
    one, two = tmp_path / "one.svs", tmp_path / "two.tif"
    one.write_bytes(b"tissue" * 1000)
    two.write_bytes(b"tissue" * 1000)
    os.utime(two, (1, 1))
    assert fingerprint(one) == fingerprint(two)
    two.write_bytes(b"tissue" * 999 + b"glass!")
    assert fingerprint(one) != fingerprint(two)


def test_large_files_are_sampled_and_ends_count(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "WHOLE", 1 << 20)
    path, size = tmp_path / "slide.svs", 9 << 20
    with open(path, "wb") as file:
        file.truncate(size)
    found = {fingerprint(path)}
    for place in (0, size - 1, (size - (1 << 16)) // 63):  # both ends, the second piece
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(b"x")
        os.utime(path, ns=(place + 1, place + 1))
        found.add(fingerprint(path))
    assert len(found) == 4


def test_only_files_have_fingerprints(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (tmp_path / "gone", "no such file"),
        (tmp_path / "pipe", "not a file"),
        (tmp_path, "not a"),
    ):
        with pytest.raises(InputError, match=said):
            fingerprint(path)
