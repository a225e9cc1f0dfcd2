"""Networks: what a forward costs, beside the plain formulation of the same network."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.harness import Row, compare
from morphogen.core.devices import autocast
from morphogen.nets import (
    GeneTransformer,
    GeneTransformerConfig,
    HierarchicalConditioner,
    UNetConfig,
    build_unet,
    fast_precision,
    gather_neighbourhood,
    optimise_for_inference,
    sinusoid,
)


class PlainStem(nn.Module):
    """Stem's forward pass written down as the paper states it: eager, float32, condition embedded at every call."""

    def __init__(self, network: GeneTransformer) -> None:
        super().__init__()
        self.net = network

    def attention(self, block: nn.Module, x: Tensor) -> Tensor:
        batch, genes, width = x.shape
        q, k, v = block.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.view(batch, genes, block.heads, -1).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)  # in float32 faster here than softmax(q·kᵀ)·v
        return block.project(mixed.transpose(1, 2).reshape(batch, genes, width))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        net = self.net
        embedder, head = net.embedder, net.head
        tokens = embedder.second(F.silu(embedder.first(x[..., None]))) + embedder.gene_vectors
        c = net.time.mlp(sinusoid(t, 256)) + net.conditioner(condition)
        for block in net.blocks:
            shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(F.silu(c)).chunk(6, dim=1)
            h = block.norm1(tokens) * (1 + scale1[:, None]) + shift1[:, None]
            tokens = tokens + gate1[:, None] * self.attention(block, h)
            h = block.norm2(tokens) * (1 + scale2[:, None]) + shift2[:, None]
            tokens = tokens + gate2[:, None] * block.fc2(F.gelu(block.fc1(h), approximate="tanh"))
        shift, scale = head.modulation(F.silu(c)).chunk(2, dim=1)
        tokens = head.norm(tokens) * (1 + scale[:, None]) + shift[:, None]
        return head.linear(tokens).transpose(1, 2)


def stem(**changes: int) -> GeneTransformer:
    """The published size, away from its zero start."""
    generator = torch.Generator().manual_seed(0)
    config = GeneTransformerConfig(genes=200, condition_dim=1536).replace(**changes)
    network = GeneTransformer(config, generator).eval()
    with torch.no_grad():
        for block in network.blocks:
            block.modulation.weight.normal_(std=0.02, generator=generator)
        if config.genes_per_token == 1:
            network.head.linear.weight.normal_(std=0.02, generator=generator)
    return network


def gene_transformer(quick: bool) -> list[Row]:
    """Forward of the default Stem network: 12 blocks of width 384, 6 heads, 200 genes."""
    batch, pairs = (4, 3) if quick else (8, 9)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 200, generator=generator)
    condition = torch.randn(batch, 1536, generator=generator)
    t = torch.full((batch,), 500.0)
    network = stem()
    plain = PlainStem(network)
    embedded = network.embed_condition(condition)
    precision = fast_precision("cpu")
    fast = optimise_for_inference(copy.deepcopy(network), precision)
    grouped = stem(genes_per_token=8)
    expected, got = plain(x, t, condition), fast(x, 500.0, embedded=embedded)
    error = float((got - expected).pow(2).mean().sqrt() / expected.std())

    def once(network: nn.Module) -> object:
        return network(x, 500.0, embedded=embedded)

    def autocasted() -> object:
        with autocast("cpu", precision):
            return once(network)

    def reference() -> object:
        return plain(x, t, condition)

    size = f"batch {batch}, {torch.get_num_threads()} threads"
    rows = [
        compare(
            f"Stem forward, {precision} / plain fp32",
            lambda: once(fast),
            reference,
            pairs=pairs,
            goal="<= 0.65",
            inverse=True,
            detail=f"{size}; rms error {error:.4f} of the output's spread",
        ),
        compare(
            f"Stem forward, autocast to {precision} / plain fp32",
            autocasted,
            reference,
            pairs=pairs,
            goal="<= 0.65",
            inverse=True,
            detail=size,
        ),
        compare(
            "Stem forward, fp32 / plain fp32",
            lambda: once(network),
            reference,
            pairs=pairs,
            inverse=True,
            detail=size,
        ),
        compare(
            "Stem forward, 8 genes per token fp32 / plain fp32",
            lambda: once(grouped),
            reference,
            pairs=pairs,
            inverse=True,
            detail=size,
        ),
    ]
    if not quick:
        compiled = optimise_for_inference(copy.deepcopy(network), precision, compile=True)
        rows.append(
            compare(
                f"Stem forward, {precision} compiled / plain fp32",
                lambda: once(compiled),
                reference,
                pairs=pairs,
                inverse=True,
                detail=size,
            )
        )
        one = PlainStem(network)
        rows.append(
            compare(
                f"Stem forward per item, {precision} batch {batch} / plain fp32 batch 1",
                lambda: once(fast),
                lambda: [one(x[i : i + 1], t[:1], condition[i : i + 1]) for i in range(batch)],
                pairs=pairs,
                inverse=True,
                detail=size,
            )
        )
    return rows


def neighbourhood(quick: bool) -> list[Row]:
    """Conditions of a slide: every spot projected once, beside gathering 58 embeddings per spot."""
    spots, width = (200, 256) if quick else (600, 1024)
    generator = torch.Generator().manual_seed(2)
    conditioner = HierarchicalConditioner(width, 384).eval()
    embeddings = torch.randn(spots, width, generator=generator)
    near = torch.randint(0, spots, (spots, 9), generator=generator)
    region = torch.randint(0, spots, (spots, 49), generator=generator)

    def gathered() -> list[Tensor]:
        rows = torch.arange(spots).split(128)
        return [conditioner(**gather_neighbourhood(embeddings, r, near[r], region[r])) for r in rows]

    return [
        compare(
            "HisDiff condition of a slide, each spot projected once, speed-up over gathering",
            lambda: conditioner.embed_slide(embeddings, near, region),
            gathered,
            pairs=3,
            detail=f"{spots} spots, width {width}",
        )
    ]


def unet(quick: bool) -> list[Row]:
    """A small latent U-Net in the fast precision, channels-last."""
    precision = fast_precision("cpu")
    network = build_unet(UNetConfig.small(4, 4, 64), seed=0).eval()
    fast = optimise_for_inference(copy.deepcopy(network), precision)
    x, context = torch.randn(2 if quick else 8, 4, 32, 32), torch.randn(1, 16, 64)
    return [
        compare(
            f"small U-Net forward, {precision} channels-last / fp32",
            lambda: fast(x, 500.0, context),
            lambda: network(x, 500.0, context),
            pairs=3 if quick else 9,
            inverse=True,
            detail=f"latent {tuple(x.shape)}",
        )
    ]


def run(quick: bool = False) -> list[Row]:
    """All of it."""
    with torch.inference_mode():
        return [*gene_transformer(quick), *neighbourhood(quick), *unet(quick)]
