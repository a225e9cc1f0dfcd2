"""What is computed once and kept: crops of a frozen network, finished parts of a result; what is checked up front."""

import numpy as np
import pytest
import torch

from morphogen.core.errors import InputError, OutputError
from morphogen.core.seeds import generator
from morphogen.tasks import Cached, CheckReport, Shards, cache_items, inspected, usable


class Numbers:
    """A dataset of three places; an item is the place and a draw."""

    def __len__(self):
        return 3

    def draw(self, index, generator):
        return {"place": torch.tensor(index), "x": torch.rand(4, generator=generator)}


def doubled(items):
    stacked = {key: torch.stack([item[key] for item in items]) for key in ("place", "x")}
    return {"place": stacked["place"], "x": (2 * stacked["x"]).half()}


def test_cached_items_are_those_that_would_be_drawn(tmp_path, monkeypatch):
    from morphogen.tasks import latents

    monkeypatch.setattr(latents, "SHARD", 8)
    folder = cache_items(Numbers(), doubled, tmp_path, {"model": "a"}, draws=7, seed=5, batch=3)
    cached = Cached(folder)
    assert len(cached) == 21 and len(list(folder.glob("*.safetensors"))) == 3
    for number in (0, 7, 8, 20):
        fresh = Numbers().draw(number % 3, generator(5, "cached crop", number))
        assert cached[number]["place"] == number % 3
        torch.testing.assert_close(cached[number]["x"], 2 * fresh["x"], atol=1e-3, rtol=1e-3)


def test_a_cache_is_kept_continued_or_refused(tmp_path, monkeypatch):
    from morphogen.tasks import latents

    monkeypatch.setattr(latents, "SHARD", 4)
    calls = []

    def encode(items):
        calls.append(len(items))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return doubled(items)

    options = {"draws": 4, "seed": 0, "batch": 4}
    with pytest.raises(KeyboardInterrupt):
        cache_items(Numbers(), encode, tmp_path, {"model": "a"}, **options)
    with pytest.raises(InputError, match="incomplete"):
        Cached(tmp_path)
    cache_items(Numbers(), encode, tmp_path, {"model": "a"}, **options)
    assert calls == [4, 4, 4, 4]  # the third shard alone is made again
    cache_items(Numbers(), encode, tmp_path, {"model": "a"}, **options)
    assert len(calls) == 4
    with pytest.raises(OutputError, match=r"cached crops of another run \(model was a, now b\)"):
        cache_items(Numbers(), encode, tmp_path, {"model": "b"}, **options)


def test_shards_of_another_plan_are_not_read(tmp_path):
    out = tmp_path / "result.h5ad"
    shards = Shards(out, "a" * 64)
    shards.write(3, {"mean": np.arange(4.0)})
    np.testing.assert_array_equal(Shards(out, "a" * 64).read(3)["mean"], np.arange(4.0))
    assert shards.read(4) is None and Shards(out, "b" * 64).read(3) is None
    shards.remove()
    assert not list(tmp_path.iterdir())


def test_all_problems_are_in_one_sentence():
    report = CheckReport(good=["a"])
    for k in range(7):
        report.add("of two sizes", f"p{k}")
    report.add("without a partner", "lonely")
    assert report.skipped == 8
    with pytest.raises(
        InputError,
        match=r"8 of 9 pairs cannot be used: 7 of two sizes \(p0, p1, p2, p3, p4 and 2 more\); "
        r"1 without a partner \(lonely\).*--skip-bad",
    ):
        usable(report, what="pairs")
    assert usable(report, skip_bad=True) == ["a"]
    with pytest.raises(InputError, match="no usable pair is left: none was found"):
        usable(CheckReport(), what="pairs")
    assert inspected(lambda x: x * 2, [3, 1, 2]) == [6, 2, 4]
