"""HisDiff's hierarchical conditioner: published numbers, and gathering by index."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from morphogen.checkpoints import load_hisdiff
from morphogen.diffusion import Schedule, ddim, losses, network_denoiser, timesteps
from morphogen.nets import HierarchicalConditioner, gather_neighbourhood


def close(ours: torch.Tensor, reference: torch.Tensor, atol: float = 2e-5, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(ours, reference, atol=atol * float(reference.abs().max()), rtol=rtol)


@pytest.fixture(scope="module")
def hisdiff(shared, tensors):
    T = tensors("hisdiff_forward")
    condition = {"spot": T["local_ebd"], "neighbours": T["neighbor_ebd"], "region": T["global_ebd"]}
    return load_hisdiff(shared / "fixtures" / "hisdiff_forward" / "0000100.pt", heads=4), T, condition


@torch.no_grad()
def test_hisdiff_gives_the_published_numbers(hisdiff):
    network, T, condition = hisdiff
    conditioner = network.conditioner
    near = conditioner.near(T["local_ebd"], conditioner.near.keys_values(T["neighbor_ebd"]))
    far = conditioner.far(T["local_ebd"], conditioner.far.keys_values(T["global_ebd"]))
    close(near, T["crossAttention_ln"])
    close(far, T["crossAttention_gn"])
    weights = conditioner.attention_weights(**condition)
    close(weights[0], T["crossAttention_ln_weights"][:, 0])
    close(weights[1], T["crossAttention_gn_weights"][:, 0])
    embedded = network.embed_condition(condition)
    close(embedded, T["img_ebd"])
    time, tokens = network.time(T["t"]), network.embedder(T["x"][:, 0])
    close(time, T["time_embed"])
    close(tokens, T["inputEmbedder"])
    for index, block in enumerate(network.blocks):
        tokens = block(tokens, F.silu(time + embedded))
        close(tokens, T[f"block{index}"])
    close(network(T["x"][:, 0], T["t"], condition), T["out"])


@torch.no_grad()
def test_hisdiff_loss_and_sampling_give_the_published_numbers(hisdiff):
    network, T, condition = hisdiff
    schedule = Schedule.linear()
    result = losses.diffusion_loss(
        network,
        T["x"][:, 0],
        T["t"],
        T["noise"][:, 0],
        schedule,
        learned_variance=True,
        vlb="discretised",
        condition={"condition": condition},
    )
    for name, key in (("mse", "loss_mse"), ("vb", "loss_vb"), ("loss", "loss_total")):
        torch.testing.assert_close(result[name], T[key], rtol=1e-4, atol=1e-5)


def store(spots: int = 12, width: int = 16):
    generator = torch.Generator().manual_seed(3)
    conditioner = HierarchicalConditioner(width, 10, heads=4).eval()
    embeddings = torch.randn(spots, width, generator=generator)
    near = torch.stack([torch.randperm(spots, generator=generator)[:5] for _ in range(spots)])
    far = torch.stack([torch.randperm(spots, generator=generator)[:9] for _ in range(spots)])
    return conditioner, embeddings, near, far


@torch.no_grad()
def test_absent_neighbours_are_as_if_they_were_not_there():
    conditioner, embeddings, near, far = store()
    spots = torch.arange(12)
    near[:, 3:], far[:, 4:] = -1, -1
    masked = conditioner(**gather_neighbourhood(embeddings, spots, near, far))
    shorter = conditioner(embeddings, embeddings[near[:, :3]], embeddings[far[:, :4]])
    torch.testing.assert_close(masked, shorter)
    weights = conditioner.attention_weights(**gather_neighbourhood(embeddings, spots, near, far))
    assert weights[0][:, 3:].abs().max() == 0
    torch.testing.assert_close(weights[0].sum(1), torch.ones(12))


@pytest.mark.parametrize("branch_mlp", [False, True])
@torch.no_grad()
def test_a_whole_slide_at_once_equals_spot_by_spot(branch_mlp):
    _, embeddings, near, far = store()
    conditioner = HierarchicalConditioner(16, 10, heads=4, branch_mlp=branch_mlp).eval()
    near[2, 1:], far[5, 3:] = -1, -1
    one_by_one = conditioner(**gather_neighbourhood(embeddings, torch.arange(12), near, far))
    torch.testing.assert_close(conditioner.embed_slide(embeddings, near, far, batch=5), one_by_one)
    assert conditioner.embed_slide(embeddings[:0], near[:0], far[:0]).shape == (0, 10)


@pytest.mark.parametrize("branch_mlp", [False, True])
@torch.no_grad()
def test_one_region_for_all_spots_equals_the_same_region_given_to_each(branch_mlp):
    _, embeddings, near, _ = store()
    conditioner = HierarchicalConditioner(16, 10, heads=4, branch_mlp=branch_mlp).eval()
    neighbours = embeddings[near]
    shared_region = conditioner(embeddings, neighbours, embeddings)
    each = conditioner(embeddings, neighbours, embeddings.expand(12, -1, -1))
    torch.testing.assert_close(shared_region, each)


def test_the_branch_mlps_of_the_paper_are_used_and_trained():
    _, embeddings, near, far = store()
    conditioner = HierarchicalConditioner(16, 10, heads=4, branch_mlp=True)
    conditioner(**gather_neighbourhood(embeddings, torch.arange(12), near, far)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in conditioner.branches.parameters())


@torch.no_grad()
def test_hisdiff_ddim_gives_the_published_sample(hisdiff):
    network, T, condition = hisdiff
    schedule = Schedule.linear()
    denoiser = network_denoiser(network, schedule, learned_variance=True)
    times = timesteps(schedule, 25, "leading")
    sample = ddim(denoiser, T["z_T"][:, 0], times, schedule, condition={"condition": condition})
    close(sample, T["ddim25_final"][:, 0], atol=1e-5, rtol=0)
