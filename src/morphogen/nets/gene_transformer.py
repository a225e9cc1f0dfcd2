"""The gene transformer: a diffusion transformer whose tokens are genes (Stem, ICLR 2025).

Noisy expression values x (B,G) become one token per gene; a condition vector (time + image) modulates every
block through adaptive layer norms whose gates start at zero (DiT, Peebles & Xie 2023). There are no
positions: a gene is known by its learned vector alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from morphogen.core.errors import InputError
from morphogen.nets.config import GeneTransformerConfig
from morphogen.nets.embedders import ImageEmbedder, TimeEmbedder
from morphogen.nets.neighbourhood import HierarchicalConditioner

Condition: TypeAlias = Tensor | Mapping[str, Tensor | None]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift, with shift and scale (B,1,D) shared by the tokens of x (B,T,D)."""
    return torch.addcmul(shift, x, 1 + scale)


def _half_on_cpu(x: Tensor) -> bool:
    """Inference in bfloat16 on a CPU, where two operations have a faster form of the same precision."""
    return x.dtype is torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d)·v for q, k, v (B,H,T,d)."""
    if not _half_on_cpu(q):
        return F.scaled_dot_product_attention(q, k, v)
    # The fused kernel multiplies in float32; plain products use the CPU's bfloat16 units (measured: 0.6 × the time).
    batch, heads, tokens, width = q.shape
    q, k, v = (part.reshape(-1, tokens, width) for part in (q, k, v))
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), v).view(batch, heads, tokens, width)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    # In bfloat16 the exact form differs from it by less than a rounding step and takes a quarter of the time.
    return F.gelu(x, approximate="none" if _half_on_cpu(x) else "tanh")


class GeneEmbedder(nn.Module):
    """Values of genes → tokens: value MLP + learned gene vector (Stem's joint gene embedding).

    With ``per_token`` k > 1, k neighbouring genes of the panel share a token: each gene then has its own
    input vector in the first layer (a shared one could not tell the genes of a token apart), the rest is as
    before.
    """

    def __init__(self, genes: int, width: int, per_token: int = 1) -> None:
        super().__init__()
        self.genes, self.per_token = genes, per_token
        self.tokens = -(-genes // per_token)
        if per_token == 1:
            self.first = nn.Linear(1, width)
        else:
            self.gene_weight = nn.Parameter(torch.empty(self.tokens, per_token, width))
            self.gene_bias = nn.Parameter(torch.zeros(width))
        self.second = nn.Linear(width, width)
        self.gene_vectors = nn.Parameter(torch.empty(self.tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B,G) values → (B, tokens, D)."""
        if self.per_token == 1:
            hidden = self.first(x[..., None])
        else:
            grouped = F.pad(x, (0, self.tokens * self.per_token - self.genes)).view(
                -1, self.tokens, self.per_token
            )
            hidden = torch.einsum("btk,tkd->btd", grouped, self.gene_weight) + self.gene_bias
        return self.second(F.silu(hidden)) + self.gene_vectors


class Block(nn.Module):
    """One DiT block (adaLN-Zero): self-attention over genes and an MLP, each modulated and gated by the
    condition."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.heads = heads
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.modulation = nn.Linear(width, 6 * width)

    def attention(self, x: Tensor) -> Tensor:
        """(B,T,D) → (B,T,D), softmax(q·kᵀ/√d)·v per head."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.project(attend(q, k, v).transpose(1, 2).reshape(batch, tokens, width))

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """x (B,T,D); activated (B,D) = SiLU of the condition vector → (B,T,D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(activated)[:, None].chunk(
            6, dim=-1
        )
        # The layers may be in bfloat16 (see optimise_for_inference); the sum over blocks stays in the type of x.
        half = self.qkv.weight.dtype
        mixed = self.attention(modulate(self.norm1(x), shift_a, scale_a).to(half))
        x = torch.addcmul(x, gate_a, mixed.to(x.dtype))
        hidden = gelu(self.fc1(modulate(self.norm2(x), shift_m, scale_m).to(half)))
        return torch.addcmul(x, gate_m, self.fc2(hidden).to(x.dtype))


class GeneHead(nn.Module):
    """Last layer: layer norm, modulation, and one linear read-out per value (own weights per gene where
    genes share a token). Starts at zero."""

    def __init__(self, genes: int, width: int, channels: int, per_token: int = 1) -> None:
        super().__init__()
        self.genes, self.channels, self.per_token = genes, channels, per_token
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        if per_token == 1:
            self.linear = nn.Linear(width, channels)
        else:
            tokens = -(-genes // per_token)
            self.gene_weight = nn.Parameter(torch.zeros(tokens, width, channels * per_token))
            self.gene_bias = nn.Parameter(torch.zeros(tokens, channels * per_token))

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """x (B,T,D), activated (B,D) → (B, channels, G)."""
        shift, scale = self.modulation(activated)[:, None].chunk(2, dim=-1)
        x = modulate(self.norm(x), shift, scale)
        if self.per_token == 1:
            return self.linear(x).transpose(1, 2)
        values = torch.einsum("btd,tdk->btk", x, self.gene_weight) + self.gene_bias
        values = values.view(len(x), -1, self.channels, self.per_token).permute(0, 2, 1, 3)
        return values.reshape(len(x), self.channels, -1)[..., : self.genes]


class GeneTransformer(nn.Module):
    """Denoiser network over a panel of G genes, conditioned on the tissue under a spot.

    ``network(x, t, condition=c)`` or, when a condition is used more than once (every step of a sampler, every
    sample of a spot), ``e = network.embed_condition(c)`` and ``network(x, t, embedded=e)``.

    Sizes of the papers: Stem 12 blocks × 384, 6 heads, C = 1536; HisDiff the same with 12 heads, C = 1024 and
    ``conditioner="hierarchical"``. generator: draws the initial weights (None: torch's default generator).
    """

    def __init__(self, config: GeneTransformerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embedder = GeneEmbedder(config.genes, width, config.genes_per_token)
        self.time = TimeEmbedder(width)
        self.conditioner: nn.Module | None = None
        if config.conditioner == "image":
            self.conditioner = ImageEmbedder(config.condition_dim, width)
        elif config.conditioner != "none":
            self.conditioner = HierarchicalConditioner(
                config.condition_dim,
                width,
                config.condition_heads,
                branch_mlp=config.conditioner == "hierarchical_mlp",
            )
        self.blocks = nn.ModuleList(Block(width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.head = GeneHead(config.genes, width, config.channels, config.genes_per_token)
        self.gradient_checkpointing = False
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Stem's initial weights: Xavier-uniform linears with zero bias, Kaiming-uniform (a = √5) gene
        vectors, N(0, 0.02²) time and image MLPs, zero modulations and read-out (so that every block starts
        as identity)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.kaiming_uniform_(self.embedder.gene_vectors, a=math.sqrt(5), generator=generator)
        if self.embedder.per_token > 1:
            # The same spread per gene as Xavier gives the 1 → D layer, shared out over the genes of a token.
            bound = math.sqrt(6 / (1 + self.config.width) / self.embedder.per_token)
            nn.init.uniform_(self.embedder.gene_weight, -bound, bound, generator=generator)
            nn.init.zeros_(self.embedder.gene_bias)
            nn.init.zeros_(self.head.gene_weight)
            nn.init.zeros_(self.head.gene_bias)
        else:
            nn.init.zeros_(self.head.linear.weight)
        small = [self.time.mlp[0], self.time.mlp[2]]
        if self.conditioner is not None:
            small += [self.conditioner.mlp[0], self.conditioner.mlp[2]]
        for linear in small:
            nn.init.normal_(linear.weight, std=0.02, generator=generator)
        for modulation in [*(block.modulation for block in self.blocks), self.head.modulation]:
            nn.init.zeros_(modulation.weight)

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.gradient_checkpointing = enabled

    def embed_condition(self, condition: Condition) -> Tensor:
        """Condition → (B,D), once per spot, good for every step and sample.

        condition: (B,C) spot embeddings, or for the hierarchical conditioner the mapping that
        :func:`morphogen.nets.gather_neighbourhood` returns.
        """
        if self.conditioner is None:
            raise InputError("this network takes no condition (conditioner=none)")
        return (
            self.conditioner(**condition) if isinstance(condition, Mapping) else self.conditioner(condition)
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        condition: Condition | None = None,
        *,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """Predict from noisy values.

        x: (B,G). t: one time for all, or (B,), in units of training steps (0…999; fractions allowed).
        condition: see :meth:`embed_condition`; embedded: (B,D) or (1,D), its result. Give one of the two.
        Returns (B,G) with one channel, (B,2,G) with two: [:,0] the prediction, [:,1] the variance coefficient
        (−1 … 1 spans β̃_t … β_t in log; Nichol & Dhariwal 2021, eq. 15).
        """
        if x.ndim != 2 or x.shape[1] != self.config.genes:
            raise InputError(
                f"x must be (B, {self.config.genes}), one value per panel gene, but is {tuple(x.shape)}"
            )
        if condition is not None and embedded is not None:
            raise InputError("give condition or embedded, not both")
        if condition is None and embedded is None and self.conditioner is not None:
            raise InputError("this network needs condition= or embedded=")
        vector = self.time(torch.as_tensor(t, device=x.device).reshape(-1))
        if condition is not None:
            embedded = self.embed_condition(condition)
        if embedded is not None:
            vector = vector + embedded
        activated = F.silu(vector)
        tokens = self.embedder(x)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, activated, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(tokens, activated)
        out = self.head(tokens, activated)
        return out[:, 0] if self.config.channels == 1 else out
