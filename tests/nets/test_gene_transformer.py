"""The gene transformer: the published numbers, and what holds at any size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from morphogen.checkpoints import load_stem
from morphogen.core.errors import ConfigError, InputError
from morphogen.diffusion import Schedule, losses
from morphogen.nets import (
    GeneTransformer,
    GeneTransformerConfig,
    fast_precision,
    optimise_for_inference,
    sinusoid,
)

STEPS, RATE = 3, 1e-4  # of the published training run


def close(ours: torch.Tensor, reference: torch.Tensor, atol: float = 2e-5, rtol: float = 1e-4) -> None:
    """Within ``atol`` of the reference's largest value plus ``rtol`` of each."""
    torch.testing.assert_close(ours, reference, atol=atol * float(reference.abs().max()), rtol=rtol)


@pytest.fixture(scope="module")
def stem(shared, tensors):
    folder = shared / "fixtures" / "stem_forward"
    return folder, tensors("stem_forward")


@torch.no_grad()
def test_stem_gives_the_published_numbers(stem):
    folder, T = stem
    network = load_stem(folder / "0000003.pt", heads=4)
    x, y = T["x"][:, 0], T["y"]
    close(network(x, T["t"], y), T["out"])
    close(network(T["x_large"][:, 0], T["t"], y), T["out_x_large"])
    close(load_stem(folder / "0000003.pt", heads=4, weights="model")(x, T["t"], y), T["out_model_weights"])


@torch.no_grad()
def test_every_stage_of_stem_gives_the_published_numbers(stem):
    folder, T = stem
    network = load_stem(folder / "0000003.pt", heads=4)
    tokens, time, image = (
        network.embedder(T["x"][:, 0]),
        network.time(T["t"]),
        network.embed_condition(T["y"]),
    )
    close(tokens, T["gene_joint_embed"])
    close(time, T["time_embed"])
    close(image, T["label_embed"])
    for index, block in enumerate(network.blocks):
        tokens = block(tokens, F.silu(time + image))
        close(tokens, T[f"block{index}"])


def test_three_training_steps_end_at_the_published_weights(stem):
    folder, T = stem
    network = load_stem(folder / "0000000.pt", heads=4, weights="model").train().requires_grad_(True)
    ema = load_stem(folder / "0000000.pt", heads=4, weights="ema")
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0)
    schedule = Schedule.linear()
    for step in range(STEPS):
        result = losses.diffusion_loss(
            network,
            T[f"train_x{step}"][:, 0],
            T[f"train_t{step}"],
            T[f"train_noise{step}"][:, 0],
            schedule,
            learned_variance=True,
            vlb="discretised",
            condition={"condition": T[f"train_y{step}"]},
        )
        for name in ("loss", "mse", "vb"):
            torch.testing.assert_close(result[name], T[f"train_{name}"][step], rtol=1e-4, atol=1e-6)
        optimiser.zero_grad()
        result["loss"].mean().backward()
        optimiser.step()
        with torch.no_grad():
            for average, parameter in zip(ema.parameters(), network.parameters(), strict=True):
                average.lerp_(parameter, 1 - 0.9999)
    for name, module, atol in (("model", network, 2e-6), ("ema", ema, 1e-6)):
        end = load_stem(folder / "0000003.pt", heads=4, weights=name).state_dict()
        for key, value in end.items():
            difference = (module.state_dict()[key] - value).abs()
            # AdamW moves an element whose gradient is nearly 0 by up to ±lr a step, whichever way rounding points: a
            # few anywhere, and all biases of the keys, which softmax cancels. Two processors may point apart.
            assert difference.max() <= 2 * STEPS * RATE * 1.05, (name, key)
            if key.endswith("qkv.bias"):
                difference = torch.cat([difference[: len(value) // 3], difference[2 * len(value) // 3 :]])
            assert (difference > atol).float().mean() <= 0.01, (name, key)


def small(**changes) -> GeneTransformer:
    settings = {"genes": 11, "condition_dim": 8, "width": 32, "depth": 2, "heads": 4} | changes
    network = GeneTransformer(GeneTransformerConfig(**settings), torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # away from the zeros it starts at, where any mistake gives the right answer
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def test_fresh_networks_give_zero_and_depend_on_the_generator_alone():
    config = GeneTransformerConfig(genes=5, condition_dim=4, width=16, depth=1, heads=2)
    one, two = (GeneTransformer(config, torch.Generator().manual_seed(7)) for _ in range(2))
    assert one(torch.randn(3, 5), 10, torch.randn(3, 4)).abs().max() == 0
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b), name
    bound = (6 / (16 + 48)) ** 0.5  # Xavier-uniform of the qkv layer
    assert 0.9 * bound < one.blocks[0].qkv.weight.abs().max() <= bound
    assert one.time.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("per_token", [1, 3, 11, 20])
@torch.no_grad()
def test_genes_per_token_cover_any_panel(per_token):
    network = small(genes_per_token=per_token)
    x, c = torch.randn(4, 11), torch.randn(4, 8)
    out = network(x, 500, c)
    assert out.shape == (4, 2, 11)
    assert network.embedder.tokens == -(-11 // per_token)
    for gene in range(11):  # each value reaches the output of its own gene
        moved = x.clone()
        moved[:, gene] += 1
        assert (network(moved, 500, c) - out)[:, :, gene].abs().min() > 0


@pytest.mark.parametrize("per_token", [1, 3])
@torch.no_grad()
def test_without_attention_a_value_reaches_the_genes_of_its_token_alone(per_token):
    network = small(genes_per_token=per_token)
    for block in network.blocks:
        block.modulation.weight.zero_(), block.modulation.bias.zero_()  # gates closed
    x, c = torch.randn(2, 11), torch.randn(2, 8)
    out = network(x, 500, c)
    for gene in range(11):
        moved = x.clone()
        moved[:, gene] += 1
        reached = (network(moved, 500, c) - out).abs().amin((0, 1)) > 0
        assert reached.tolist() == [other // per_token == gene // per_token for other in range(11)]


@torch.no_grad()
def test_items_of_a_batch_do_not_meet_and_genes_without_positions_permute():
    network = small()
    x, c, t = torch.randn(4, 11), torch.randn(4, 8), torch.tensor([1.0, 250.5, 800, 999])
    whole = network(x, t, c)
    for i in range(4):
        close(network(x[i : i + 1], float(t[i]), c[i : i + 1]), whole[i : i + 1], atol=1e-5)
    order = torch.randperm(11)
    network.embedder.gene_vectors.copy_(network.embedder.gene_vectors[order])
    close(network(x[:, order], t, c), whole[:, :, order], atol=1e-5)


@torch.no_grad()
def test_a_condition_embedded_once_serves_every_step_and_sample():
    network = small()
    x, c = torch.randn(6, 11), torch.randn(1, 8)
    close(network(x, 77, embedded=network.embed_condition(c)), network(x, 77, c.expand(6, -1)), atol=1e-6)


def test_one_channel_and_no_condition():
    network = small(channels=1, condition_dim=0, conditioner="none")
    assert network(torch.randn(2, 11), torch.tensor([0, 999])).shape == (2, 11)


def test_gradient_checkpointing_changes_no_gradient():
    network = small().train()
    x, c = torch.randn(2, 11), torch.randn(2, 8)
    network(x, 3, c).square().sum().backward()
    plain = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    network.enable_gradient_checkpointing()
    network(x, 3, c).square().sum().backward()
    for a, p in zip(plain, network.parameters(), strict=True):
        torch.testing.assert_close(p.grad, a)


def test_time_features_are_cosines_then_sines():
    t = torch.tensor([0.0, 1.0, 999.5])
    features = sinusoid(t, 6)
    frequency = 10_000 ** (-torch.arange(3) / 3)
    torch.testing.assert_close(features[:, :3], (t[:, None] * frequency).cos(), atol=1e-4, rtol=0)
    torch.testing.assert_close(features[:, 3:], (t[:, None] * frequency).sin(), atol=1e-4, rtol=0)
    assert sinusoid(t, 7).shape == (3, 7)


@torch.no_grad()
def test_bfloat16_inference_keeps_the_answer_and_the_type():
    network = small(genes=40, width=64, depth=4)
    x, c = torch.randn(8, 40), torch.randn(8, 8)
    exact = network(x, 400, c)
    fast = optimise_for_inference(copy.deepcopy(network), "bf16")
    got = fast(x, 400, c)
    assert got.dtype == torch.float32
    assert fast.blocks[0].fc1.weight.dtype == torch.bfloat16
    assert (got - exact).pow(2).mean().sqrt() < 0.02 * exact.std()
    assert fast_precision("cpu") in ("bf16", "fp32")


@pytest.mark.slow
@torch.no_grad()
def test_compilation_runs():
    network = small(depth=1)
    x, c = torch.randn(4, 11), torch.randn(4, 8)
    exact = network(x, 400, c)
    close(optimise_for_inference(copy.deepcopy(network), compile=True)(x, 400, c), exact, atol=1e-5)


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="fp16 needs a GPU. Use bf16"):
        optimise_for_inference(small(), "fp16")


def test_wrong_inputs_are_named():
    network = small()
    with pytest.raises(InputError, match=r"x must be \(B, 11\)"):
        network(torch.randn(2, 12), 0, torch.randn(2, 8))
    with pytest.raises(InputError, match="needs condition= or embedded="):
        network(torch.randn(2, 11), 0)
    with pytest.raises(InputError, match="not both"):
        network(torch.randn(2, 11), 0, torch.randn(2, 8), embedded=torch.randn(2, 32))
    with pytest.raises(ConfigError, match="width 30 is not a multiple of heads 4"):
        GeneTransformerConfig(genes=3, condition_dim=4, width=30, heads=4)
    with pytest.raises(ConfigError, match="condition_dim is 0 exactly when"):
        GeneTransformerConfig(genes=3, condition_dim=0)
