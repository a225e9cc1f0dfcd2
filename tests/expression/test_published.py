"""Published checkpoints through the public loaders give the published numbers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from morphogen.core.errors import CheckpointError, InputError
from morphogen.diffusion import ddim, ddpm, respaced
from morphogen.expression import ExpressionModel


def stem(shared):
    genes = [f"G{i}" for i in range(24)]
    return ExpressionModel.from_published(shared / "fixtures/stem_forward/0000003.pt", "stem", genes, heads=4)


def hisdiff(shared):
    genes = [f"G{i}" for i in range(20)]
    return ExpressionModel.from_published(
        shared / "fixtures/hisdiff_forward/0000100.pt", "hisdiff", genes, heads=4
    )


def close(found, want, rtol=1e-4, atol=2e-5):
    want = want.detach().numpy()
    np.testing.assert_allclose(found.detach().numpy(), want, rtol=rtol, atol=atol * np.abs(want).max())


@pytest.mark.parametrize("saved", [False, True])
def test_stem_network(shared, tensors, tmp_path, saved):
    model, t = stem(shared), tensors("stem_forward")
    if saved:
        model = ExpressionModel.from_pretrained(model.save_pretrained(tmp_path / "m"))
    with torch.no_grad():
        out = model.head.network(t["x"][:, 0], t["t"], t["y"])
    close(out, t["out"])
    assert model.transform.log == "log2p1" and model.config.network.objective == "epsilon"


def test_stem_sampling(shared, tensors):
    """The published samplers, DDIM and ancestral, through the model's own denoiser and condition embedding."""
    model, t = stem(shared), tensors("stem_diffusion")
    head = model.head
    embedded = head.network.embed_condition(t["y"])
    with torch.no_grad():
        found = ddim(
            head.denoiser(), t["z_T"][:, 0], respaced(head.schedule, "ddim25"), head.schedule,
            condition={"embedded": embedded},
        )  # fmt: skip
    want = t["ddim25_noclip_final"][:, 0]
    np.testing.assert_allclose(found, want, atol=1e-5 * float(want.abs().max()))
    noises = t["step_noises_20"][:, :, 0]
    with torch.no_grad():
        found = ddpm(
            head.denoiser(), t["z_T"][:, 0], respaced(head.schedule, 20), head.schedule, variance="learned",
            noise=lambda step: noises[step], condition={"embedded": embedded},
        )  # fmt: skip
    want = t["ddpm20_final"][:, 0]
    np.testing.assert_allclose(found, want, atol=1e-5 * float(want.abs().max()))


def test_hisdiff_network_and_sampling(shared, tensors, tmp_path):
    model, t = hisdiff(shared), tensors("hisdiff_forward")
    model = ExpressionModel.from_pretrained(model.save_pretrained(tmp_path / "m"))
    condition = {"spot": t["local_ebd"], "neighbours": t["neighbor_ebd"], "region": t["global_ebd"]}
    head = model.head
    with torch.no_grad():
        close(head.network(t["x"][:, 0], t["t"], condition), t["out"])
        embedded = head.network.embed_condition(condition)
        found = ddim(
            head.denoiser(), t["z_T"][:, 0], respaced(head.schedule, "ddim25"), head.schedule,
            condition={"embedded": embedded},
        )  # fmt: skip
    want = t["ddim25_final"][:, 0]
    np.testing.assert_allclose(found, want, atol=1e-5 * float(want.abs().max()))


def test_a_published_model_predicts_a_section(shared, make_section):
    model = stem(shared)
    section = make_section("s", side=3, width=40)
    section.uns["morphogen"]["prepare"]["encoder"]["name"] = "uni+conch"
    result = model(section, samples=2, steps=3, device="cpu")
    assert result.layers["pred_mean"].shape == (9, 24)
    assert result.uns["morphogen"]["prediction"]["transform"] == "log2(counts + 1)"


def test_gene_list_must_fit(shared):
    with pytest.raises(InputError, match="3 genes, the checkpoint 24"):
        ExpressionModel.from_published(
            shared / "fixtures/stem_forward/0000003.pt", "stem", ["a", "b", "c"], heads=4
        )


class _Trap:
    def __reduce__(self):
        import os

        return os.system, ("touch trapped",)


def test_a_checkpoint_with_foreign_objects_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"x": torch.zeros(1)}, "ema": _Trap()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError):
        ExpressionModel.from_published("evil.pt", "stem", ["a"])
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(CheckpointError):
        ExpressionModel.from_published("plain.pt", "stem", ["a"])
    assert not (tmp_path / "trapped").exists()
