"""Context tokens: representation embeddings and text."""

from __future__ import annotations

import pytest
import torch

from morphogen.core.errors import CheckpointError, InputError
from morphogen.nets import RepresentationTokens, load_text_encoder


def published(T, prefix: str, names: list[str]) -> RepresentationTokens:
    weights = {name: T[f"{prefix}.{name}_fc.weight"] for name in names}
    tokens = RepresentationTokens({name: w.shape[1] for name, w in weights.items()}, 64)
    tokens.load_state_dict(
        {
            f"projections.{n}.{part}": T[f"{prefix}.{n}_fc.{part}"]
            for n in names
            for part in ("weight", "bias")
        }
    )
    return tokens


@torch.no_grad()
def test_published_numbers(tensors):
    T = tensors("ldm_unet")
    one = published(T, "patch_embedder", ["patch"])
    two = published(T, "ssl_embedder", ["patch", "region"])
    torch.testing.assert_close(one(patch=T["emb_patch"]), T["patch_embedder_out"])
    torch.testing.assert_close(two(patch=T["emb_patch"], region=T["emb_region"]), T["ssl_embedder_out"])
    torch.testing.assert_close(two(patch=T["emb_patch"]), T["ssl_embedder_out_noregion"])
    torch.testing.assert_close(two(patch=T["emb_patch"], region=None), T["ssl_embedder_out_noregion"])


@torch.no_grad()
def test_length_of_an_embedding_does_not_count_and_zero_is_the_bias():
    tokens = RepresentationTokens({"patch": 6, "region": 4}, 10)
    patch, region = torch.randn(3, 6), torch.randn(3, 4)
    assert tokens(patch=patch, region=region).shape == (3, 2, 10) and tokens.tokens == 2
    torch.testing.assert_close(tokens(patch=7 * patch, region=region), tokens(patch=patch, region=region))
    zero = tokens(patch=torch.zeros(3, 6), region=torch.zeros(3, 4))
    assert torch.equal(zero, tokens.null(3))
    assert torch.equal(zero[0, 1], tokens.projections["region"].bias)


def test_wrong_embeddings_are_named():
    tokens = RepresentationTokens({"patch": 6}, 10)
    with pytest.raises(InputError, match="unknown embedding 'pach'. Did you mean 'patch'?"):
        tokens(pach=torch.zeros(1, 6))
    with pytest.raises(InputError, match=r"'patch' must be \(2, 6\), but is \(2, 5\)"):
        tokens(patch=torch.zeros(2, 5))
    with pytest.raises(InputError, match="at least one embedding"):
        tokens()


def test_text_states_are_the_published_ones(shared, tensors):
    T = tensors("histdist_inference")
    text = load_text_encoder(shared / "fixtures" / "histdist_inference" / "pipeline")
    assert torch.equal(text.token_ids(["H&E"]), T["input_ids_he"])
    reference = T["text_he"]
    torch.testing.assert_close(text(["H&E"]), reference, atol=1e-5 * float(reference.abs().max()), rtol=1e-5)
    assert text(["H&E", "a very long prompt " * 60]).shape == (2, 77, text.width)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="the tokenizer does not load"):
        load_text_encoder(tmp_path)
