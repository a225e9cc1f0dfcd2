"""The same code on a GPU: same numbers in float32, close ones in bfloat16, compiled or not."""

from __future__ import annotations

import copy

import pytest
import torch

from morphogen.nets import (
    GeneTransformer,
    GeneTransformerConfig,
    UNetConfig,
    build_unet,
    optimise_for_inference,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def networks():
    config = GeneTransformerConfig(genes=50, condition_dim=32, width=64, depth=3, heads=4)
    genes = GeneTransformer(config, torch.Generator().manual_seed(0)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in genes.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    unet = build_unet(UNetConfig.small(4, 4, 16), seed=0).eval()
    x, c = torch.randn(8, 50), torch.randn(8, 32)
    z, context = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16)
    return {"genes": (genes, x, c), "unet": (unet, z, context)}


@pytest.mark.parametrize("name", ["genes", "unet"])
@pytest.mark.parametrize(
    ("precision", "compile", "limit"), [("fp32", False, 2e-3), ("bf16", False, 0.05), ("bf16", True, 0.05)]
)
@torch.no_grad()
def test_gpu_agrees_with_cpu(name, precision, compile, limit):
    network, x, condition = networks()[name]
    exact = network(x, 300, condition)
    fast = optimise_for_inference(copy.deepcopy(network).cuda(), precision, compile)
    got = fast(x.cuda(), 300, condition.cuda()).cpu()
    assert got.dtype == torch.float32
    assert (got - exact).pow(2).mean().sqrt() <= limit * exact.std()
