"""Networks made ready for sampling: eval mode, reduced precision, memory layout, compilation."""

from __future__ import annotations

import torch
from torch import nn

from morphogen.core.devices import multiplies_bf16, torch_dtype
from morphogen.core.errors import ConfigError
from morphogen.nets.gene_transformer import GeneTransformer


def fast_precision(device: torch.device | str) -> str:
    """The precision that pays on a device: "bf16" on GPUs and CPUs that multiply in bfloat16, else "fp32"."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if multiplies_bf16(device) else "fp16"
    if kind == "cpu":
        flags = (
            getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        )
        return "bf16" if any(flag is not None and flag() for flag in flags) else "fp32"
    return "fp32"


def optimise_for_inference(network: nn.Module, precision: str = "fp32", compile: bool = False) -> nn.Module:
    """Prepare a network for sampling IN PLACE (pass a deepcopy to keep a trainable one), and return it.

    It takes and returns float32 tensors as before. precision: "fp32", "bf16" or "fp16" for the weights of
    the layers that cost time; the sum over a gene transformer's blocks, its embedders and its read-out stay
    in float32. Convolutional networks are laid out channels-last. compile: torch.compile; takes a minute or
    more the first time and gains little on a CPU (measured in docs/benchmarks.md). fp16 needs a GPU.
    """
    dtype = torch_dtype(precision)
    if dtype is torch.float16 and all(p.device.type == "cpu" for p in network.parameters()):
        raise ConfigError("fp16 needs a GPU", where="--precision", fix="Use bf16 or fp32 on a CPU")
    network.eval().requires_grad_(False)
    if isinstance(network, GeneTransformer):
        for block in network.blocks:
            for layer in (block.qkv, block.project, block.fc1, block.fc2):
                layer.to(dtype)
    else:
        network.to(dtype=dtype, memory_format=torch.channels_last)
    if compile:
        network.compile()
    return network
