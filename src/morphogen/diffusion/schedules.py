"""Noise schedules: how much signal and how much noise there is at a time t.

A schedule answers one question: in ``x_t = alpha(t)·x0 + sigma(t)·eps``, what are alpha and sigma? Two kinds:

``vp``
    Variance preserving, ``alpha² + sigma² = 1``: a table of ``alpha_bar = alpha²`` at the integer times
    0 … T−1 (Ho et al. 2020). Time 0 is the first noise level, not the data.
``flow``
    The straight line ``x_t = (1−t)·x0 + t·eps``, t in [0, 1] (Liu et al. 2023, Lipman et al. 2023).
    Time 0 is the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from morphogen.core.errors import ConfigError

Time: TypeAlias = "float | Tensor"
Levels: TypeAlias = "tuple[Any, Any]"  # two numbers, or two tensors


@dataclass(frozen=True, eq=False)
class Schedule:
    """Signal and noise levels over time. Build one with a class method; see the module's text for the kinds.

    Every method takes a number (and answers in double precision, on the CPU, so a solver's coefficients are plain
    numbers and never wait for a GPU) or a tensor of times of any shape (and answers with float32 on its device).
    Times between the integers are interpolated in log-SNR; integer times are exact.

    >>> schedule = Schedule.scaled_linear().zero_terminal_snr()
    >>> schedule.T, schedule.alpha(schedule.last), schedule.sigma(schedule.last)
    (1000, 0.0, 1.0)
    """

    kind: Literal["vp", "flow"]
    table: Tensor | None = field(default=None, repr=False)
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in ("vp", "flow"):
            raise ConfigError(
                f"unknown kind of schedule '{self.kind}'", where="schedule", fix="Use vp or flow"
            )
        if self.kind == "flow":
            return
        if self.table is None:
            raise ConfigError("a vp schedule needs its table of alpha_bar", where="schedule")
        bar = self.table.detach().to("cpu", torch.float64)
        if bar.ndim != 1 or len(bar) < 2 or bool((bar[1:] >= bar[:-1]).any()) or bar[0] >= 1 or bar[-1] < 0:
            raise ConfigError(
                "alpha_bar must fall strictly within (1, 0] over at least two steps", where="schedule"
            )
        object.__setattr__(self, "table", bar)

    # -- the schedules of the papers ---------------------------------------------------------------------------

    @classmethod
    def from_betas(cls, betas: Tensor) -> Schedule:
        """From single-step variances ``beta`` (T,): ``alpha_bar_t = prod(1 − beta)``."""
        return cls("vp", torch.cumprod(1 - betas.detach().to("cpu", torch.float64), dim=0))

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
        """beta linear in t (Ho et al. 2020). Stem and HisDiff use the defaults."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, T, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, beta_start: float = 0.00085, beta_end: float = 0.012, T: int = 1000) -> Schedule:
        """√beta linear in t (Rombach et al. 2022). The defaults are Stable Diffusion's."""
        roots = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), T, dtype=torch.float64)
        return cls.from_betas(roots**2)

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
        """alpha_bar a squared cosine (Nichol & Dhariwal 2021, eq. 17), with beta at most ``max_beta``."""
        t = torch.arange(T + 1, dtype=torch.float64) / T
        bar = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
        return cls.from_betas((1 - bar[1:] / bar[:-1]).clamp(max=max_beta))

    @classmethod
    def flow(cls) -> Schedule:
        """The straight line ``x_t = (1−t)·x0 + t·eps``, t in [0, 1]."""
        return cls("flow")

    def zero_terminal_snr(self) -> Schedule:
        """The same schedule shifted and scaled so that the last step is pure noise (Lin et al. 2024, Algorithm 1)."""
        root = self.alpha_bar.sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        return Schedule("vp", root**2)

    # -- levels ------------------------------------------------------------------------------------------------

    @property
    def alpha_bar(self) -> Tensor:
        """(T,) float64 on the CPU: alpha² at the integer times."""
        if self.table is None:
            raise ConfigError("a flow schedule has no table of alpha_bar", fix="Use alpha(t) and sigma(t)")
        return self.table

    @property
    def T(self) -> int:
        """Number of training steps."""
        return len(self.alpha_bar)

    @property
    def betas(self) -> Tensor:
        """(T,) float64: single-step variances, ``1 − alpha_bar_t / alpha_bar_{t−1}``."""
        bar = self.alpha_bar
        return 1 - bar / torch.cat([bar.new_ones(1), bar[:-1]])

    @property
    def first(self) -> float:
        """The earliest time: 0 for both kinds (a first small noise for ``vp``, the data for ``flow``)."""
        return 0

    @property
    def last(self) -> float:
        """The noisiest time: T − 1 for ``vp``, 1 for ``flow``."""
        return 1.0 if self.kind == "flow" else self.T - 1

    @property
    def zero_snr(self) -> bool:
        """Whether the noisiest time holds no signal at all."""
        return self.kind == "flow" or float(self.alpha_bar[-1]) == 0.0

    def alpha(self, t: Time) -> Any:
        """The factor of x0 in x_t."""
        return self.levels(t)[0]

    def sigma(self, t: Time) -> Any:
        """The factor of eps in x_t."""
        return self.levels(t)[1]

    def log_snr(self, t: Time) -> Any:
        """``log(alpha²/sigma²)``: twice the λ of DPM-Solver; ±inf at pure data and pure noise."""
        alpha, sigma = self.levels(t)
        if isinstance(alpha, Tensor):
            return 2 * (alpha.log() - sigma.log())
        return _log_ratio(alpha, sigma)

    def levels(self, t: Time) -> Levels:
        """``(alpha, sigma)`` at t, a number or a tensor; out of range is an error for numbers, clamped for tensors."""
        if isinstance(t, Tensor):
            return self._levels(t)
        if not self.first <= t <= self.last:
            raise ConfigError(
                f"time {t} is outside the schedule's {self.first} … {self.last}", where="timesteps"
            )
        alpha, sigma = self._levels(torch.tensor(float(t), dtype=torch.float64))
        return alpha.item(), sigma.item()

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "flow":
            t = t if t.is_floating_point() else t.float()
            return 1 - t, t
        dtype = t.dtype if t.dtype == torch.float64 else torch.float32
        bar = self._on(t.device)
        if not t.is_floating_point():
            bar = bar[t.clamp(0, self.T - 1)]
        else:
            bar = self._between(bar, t)
        return bar.sqrt().to(dtype), (1 - bar).sqrt().to(dtype)

    def _between(self, bar: Tensor, t: Tensor) -> Tensor:
        """alpha_bar at real times: linear in log-SNR, linear in √alpha_bar beside a level of pure noise."""
        t = t.to(bar.dtype).clamp(0, self.T - 1)
        low = t.floor().long().clamp(max=self.T - 2)
        part = t - low
        a, b = bar[low], bar[low + 1]
        smooth = torch.sigmoid(torch.lerp(torch.logit(a), torch.logit(b), part))
        smooth = torch.where(b > 0, smooth, torch.lerp(a.sqrt(), b.sqrt(), part) ** 2)
        return torch.where(part == 0, a, torch.where(part == 1, b, smooth))

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            # Apple's MPS has no doubles; everywhere else 1 − alpha_bar keeps its digits.
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._copies[device] = self.alpha_bar.to(device, dtype)
        return self._copies[device]

    # -- training ----------------------------------------------------------------------------------------------

    def add_noise(self, x0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """``x_t = alpha·x0 + sigma·eps``; ``t`` is a number or one time per item, (B,)."""
        alpha, sigma = self.levels_like(t, x0)
        return alpha * x0 + sigma * eps

    def levels_like(self, t: Time, x: Tensor) -> Levels:
        """:meth:`levels`, with a tensor of times (B,) shaped to multiply ``x`` (B, …)."""
        alpha, sigma = self.levels(t)
        if isinstance(alpha, Tensor) and isinstance(sigma, Tensor):
            shape = alpha.shape + (1,) * (x.ndim - alpha.ndim)
            return alpha.view(shape).to(x.dtype), sigma.view(shape).to(x.dtype)
        return alpha, sigma

    def random_times(self, n: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """(n,) training times: uniform integers for ``vp``, logit-normal in (0, 1) for ``flow`` (Esser et al. 2024).

        Drawn on the generator's device, so a seed means the same times wherever the network runs.
        """
        if self.kind == "flow":
            normal = torch.randn(n, generator=generator, device=generator.device)
            return torch.sigmoid(normal).to(device)
        return torch.randint(0, self.T, (n,), generator=generator, device=generator.device).to(device)

    def network_time(self, t: Time, x: Tensor) -> Tensor:
        """(B,) float32 on x's device: what the network's time embedding is given. Flow times are scaled to 0 … 1000,
        the range that sinusoidal embeddings are made for."""
        scale = 1000.0 if self.kind == "flow" else 1.0
        if isinstance(t, Tensor):
            return (t.to(x.device, torch.float32) * scale).expand(x.shape[0])
        return torch.full((x.shape[0],), float(t) * scale, device=x.device)


def _log_ratio(alpha: float, sigma: float) -> float:
    if alpha == 0:
        return -math.inf
    return math.inf if sigma == 0 else 2 * (math.log(alpha) - math.log(sigma))


def level_lists(schedule: Schedule, times: Sequence[float]) -> tuple[list[float], list[float]]:
    """alpha and sigma at every time, as plain numbers: the tables of one solver call."""
    for t in times:
        if not schedule.first <= t <= schedule.last:
            raise ConfigError(
                f"time {t} is outside the schedule's {schedule.first} … {schedule.last}", where="timesteps"
            )
    alpha, sigma = schedule.levels(torch.tensor([float(t) for t in times], dtype=torch.float64))
    assert isinstance(alpha, Tensor) and isinstance(sigma, Tensor)
    return alpha.tolist(), sigma.tolist()
