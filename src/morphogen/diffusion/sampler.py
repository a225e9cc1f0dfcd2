"""How a sample is made, said once for every task: which solver, how many steps, where they lie, how it is guided.

:class:`SamplerConfig` holds the choice, :func:`sample` carries it out, :func:`expectation` is the mean at pure noise.
A task room that needs other numbers makes a subclass with fields or ``PRESETS`` of its own; no room calls a solver by
itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor

from morphogen.core.config import Config
from morphogen.core.errors import ConfigError, nearest
from morphogen.diffusion import solvers
from morphogen.diffusion.guidance import guided
from morphogen.diffusion.multistep import dpmpp_3m
from morphogen.diffusion.predictions import Denoiser
from morphogen.diffusion.schedules import Schedule
from morphogen.diffusion.spacing import timesteps
from morphogen.diffusion.state import Callback, resumable

Solver = Literal["ddim", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "ddpm", "plms", "euler", "heun", "mean"]

_ETA = {  # name → (middle, swing) of eta(x) = middle − swing·cos(πx)
    "cosine": (0.6, 0.4),
    "cosine-narrow": (0.55, 0.45),
    "cosine-wide": (0.65, 0.35),
}


class SamplerConfig(Config):
    """How a sample is made. The presets ``fast``, ``reference`` and ``mean`` are values of these fields; beside other
    fields, ``preset: NAME`` (``--sampler.preset NAME``, ``--solver NAME``) fills what they leave unset.

    >>> SamplerConfig.named("fast").solver
    'dpmpp_2m'
    >>> SamplerConfig.named("reference").replace(steps=50).steps
    50
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "fast": {},
        "reference": {"solver": "ddpm", "steps": 1000, "spacing": "trailing"},
        "mean": {"solver": "mean", "steps": 1},
    }

    solver: Solver = Field(
        "dpmpp_2m",
        description="ddim, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, ddpm (ancestral), plms, euler or heun (flows); mean: one "
        "evaluation at pure noise, the expected answer (that of a regression).",
    )
    steps: int = Field(20, ge=1, description="Steps from noise to data.")
    spacing: Literal["model", "trailing", "leading", "linspace", "strided", "log_snr", "log_snr_few"] = Field(
        "trailing",
        description="Where the steps lie. model = as the schedule was made for: trailing where it ends in pure "
        "noise, else leading.",
    )
    steps_offset: int | None = Field(
        None,
        ge=0,
        description="leading: added to every time. null = 1 where the schedule keeps some signal (Stable Diffusion), "
        "else 0.",
    )
    eta: float | str = Field(
        0.0,
        description="DDIM noise: a number 0…1, cosine (0.6−0.4cos), cosine-narrow (0.55−0.45cos), cosine-wide "
        "(0.65−0.35cos) or linear; training: as much as single training steps add, however far the steps go.",
    )
    variance: Literal["model", "small", "large", "learned"] = Field(
        "model",
        description="ddpm: variance of a step. model = learned where the network says one, else small.",
    )
    final: Literal["data", "first"] = Field(
        "data", description="Where the last step ends: data, or the schedule's first noise level."
    )
    guidance_scale: float = Field(
        1.0, ge=0, description="Classifier-free guidance, eps_u + s·(eps_c − eps_u). 1 = none."
    )
    guidance_interval: tuple[float, float] | None = Field(
        None, description="Times (low, high) within which guidance acts. null = at all."
    )
    guidance_rescale: float = Field(
        0.0, ge=0, le=1, description="Pull the spread of guided predictions back (Lin et al. 2024). 0 = not."
    )

    @model_validator(mode="before")
    @classmethod
    def _under(cls, values: Any) -> Any:
        """``preset: reference`` in a file or on the command line fills what is not said beside it."""
        if not isinstance(values, Mapping) or "preset" not in values:
            return values
        name, said = values["preset"], {key: value for key, value in values.items() if key != "preset"}
        return {**cls.preset_values(name), **said} if name is not None else said

    @classmethod
    def preset_values(cls, name: str) -> Mapping[str, Any]:
        """The fields that a preset sets; the name of a solver is a preset of that solver alone. :class:`ConfigError`
        names the near one."""
        if name in cls.PRESETS:
            return cls.PRESETS[name]
        names = [*cls.PRESETS, *(each for each in get_args(Solver) if each not in cls.PRESETS)]
        if name in names:
            return {"solver": name}
        raise ConfigError(
            f"unknown solver '{name}'.{nearest(str(name), names)}",
            where="--solver",
            fix=f"Use {', '.join(names)}",
        )

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some fields changed; ``preset=NAME`` begins from that preset."""
        preset = changes.pop("preset", None)
        return super(SamplerConfig, self if preset is None else self.named(preset)).replace(**changes)

    @classmethod
    def named(cls, name: str) -> Self:
        """The preset of this name."""
        return cls(**cls.preset_values(name))

    @property
    def name(self) -> str:
        """The preset that these settings are, whatever the number of steps; else the solver."""
        for name in self.PRESETS:
            if self.named(name).replace(steps=self.steps) == self:
                return name
        return self.solver

    @classmethod
    def of(cls, choice: SamplerConfig | str) -> Self:
        """A configuration as it is, or the preset of a name."""
        if isinstance(choice, str):
            return cls.named(choice)
        return choice if isinstance(choice, cls) else cls(**choice.to_dict())

    @classmethod
    def reference(cls) -> Self:
        """As published."""
        return cls.named("reference")

    @classmethod
    def fast(cls) -> Self:
        """A few second-order steps."""
        return cls.named("fast")

    @classmethod
    def mean(cls) -> Self:
        """One evaluation."""
        return cls.named("mean")

    def times(self, schedule: Schedule) -> list[float]:
        """The times visited, noisiest first; empty for ``mean``."""
        if self.solver == "mean":
            return []
        return spaced(schedule, self.steps, self.spacing, self.steps_offset)

    def evaluations(self, schedule: Schedule) -> int:
        """Calls of the network per sample; a guided one counts once, although it sees two conditions."""
        if self.solver == "mean":
            return 1
        n = len(self.times(schedule))
        return {"plms": n + 1, "heun": 2 * n - 1}.get(self.solver, n)


def spaced(
    schedule: Schedule, n: int, spacing: str = "model", steps_offset: int | None = None
) -> list[float]:
    """``n`` falling times; ``model`` and an offset of ``None`` as :class:`SamplerConfig` describes them."""
    if spacing == "model":
        spacing = "trailing" if schedule.zero_snr else "leading"
    if steps_offset is None:
        steps_offset = 1 if spacing == "leading" and not schedule.zero_snr else 0
    return timesteps(schedule, n, spacing, steps_offset=steps_offset)  # type: ignore[arg-type]


def eta_function(name: str | float) -> Callable[[float], float] | float:
    """η over progress x = i/(N−1): 0 at the noisiest step, 1 at the cleanest (HistDiST, section 2).

    ``cosine`` is clamp(0.6 − 0.4·cos(πx), 0, 1): little noise while structure forms, ancestral noise at the
    end. ``linear`` is x. A number is constant.
    """
    if isinstance(name, str) and name in _ETA:
        middle, swing = _ETA[name]
        return lambda x: min(max(middle - swing * math.cos(math.pi * x), 0.0), 1.0)
    if name == "linear":
        return lambda x: x
    try:
        value = float(name)
    except ValueError:
        choices = [*_ETA, "linear", "training"]
        raise ConfigError(
            f"unknown eta '{name}'.{nearest(str(name), choices)}",
            where="sampler.eta",
            fix=f"Use {', '.join(choices)} or 0…1",
        ) from None
    if not 0 <= value <= 1:
        raise ConfigError(f"eta is {name}, but must lie in 0…1", where="sampler.eta")
    return value


def sample(
    denoiser: Denoiser,
    start: Any,
    schedule: Schedule,
    config: SamplerConfig,
    *,
    noise: solvers.Noise | None = None,
    condition: Mapping[str, Any] | None = None,
    null_condition: Mapping[str, Any] | None = None,
    around: Callable[[Denoiser], Denoiser] | None = None,
    callback: Callback | None = None,
    state: Path | str | None = None,
    save_every: int = 1,
    job: str = "",
) -> Any:
    """From noise to data as ``config`` says.

    Parameters
    ----------
    start:
        x at the noisiest time, (B, …): standard normal noise, a :class:`~morphogen.diffusion.Canvas`, or the noise
        that an inversion found.
    noise:
        ``noise(step)`` shaped like x; needed by the solvers that add some (ddpm, dpmpp_2m_sde, ddim with eta > 0).
    condition:
        Handed to the denoiser.
    null_condition:
        The conditions of the unconditional half, as in :func:`~morphogen.diffusion.guided`; needed when
        ``config.guidance_scale`` is not 1.
    around:
        Makes the denoiser that the solver sees of the guided one, such as
        ``lambda inner: windowed(inner, layout)`` for a large canvas.
    callback:
        ``callback(state, prediction)`` after every step; not called by ``mean``.
    state, save_every, job:
        A file that keeps where the solver stands after every ``save_every`` steps, so that a killed run goes on to
        the same bytes; ``job`` tells this job from others (:func:`~morphogen.diffusion.resumable`).

    Returns
    -------
    x at the data (or first) level, shaped like ``start``.

    >>> import torch
    >>> from morphogen.diffusion import ItemNoise, Mixture, Schedule
    >>> schedule, data = Schedule.cosine(), Mixture.gaussian(torch.tensor([3.0]), torch.tensor([0.1]))
    >>> noise = ItemNoise(0, keys=range(100), shape=(1,))
    >>> x = sample(data.denoiser(schedule), noise(-1), schedule, SamplerConfig.fast())
    >>> round(float(x.mean()), 1)
    3.0
    """
    denoiser = guided_by(denoiser, schedule, config, null_condition)
    if around is not None:
        denoiser = around(denoiser)
    if config.solver == "mean":
        return expectation(denoiser, start, schedule, condition=condition)
    function, options = _solver(config, schedule, noise)
    if state is not None:
        function = resumable(function, state, every=save_every, job=job)
    return function(
        denoiser,
        start,
        config.times(schedule),
        schedule,
        condition=condition,
        callback=callback,
        **options,
    )


@torch.no_grad()
def expectation(
    denoiser: Denoiser, start: Tensor, schedule: Schedule, *, condition: Mapping[str, Any] | None = None
) -> Tensor:
    """E[data | condition], (B, …): what the denoiser says at pure noise, from one evaluation.

    ``start`` is x there; zeros, the centre of the noise, leave no seed in the answer. An epsilon network says nothing
    about the data at pure noise: its error counts sigma/alpha times, 157 times on the linear schedule.
    """
    return denoiser(start, schedule.last, **(condition or {})).x0


def guided_by(
    denoiser: Denoiser,
    schedule: Schedule,
    config: SamplerConfig,
    null_condition: Mapping[str, Any] | None,
) -> Denoiser:
    """The denoiser with the guidance of ``config``; the same one where there is none."""
    if config.guidance_scale == 1:
        return denoiser
    if not null_condition:
        raise ConfigError(
            f"guidance {config.guidance_scale:g} needs a model that was trained without its condition, too",
            where="sampler.guidance_scale",
            fix="Use 1 with this model",
        )
    return guided(
        denoiser,
        null_condition,
        config.guidance_scale,
        config.guidance_interval,
        config.guidance_rescale,
        schedule=schedule,
    )


def training_etas(schedule: Schedule, times: Sequence[float]) -> list[float]:
    """η of every step such that its noise is that of ONE training step at its time, ``β_t (1−ᾱ_prev)/(1−ᾱ_t)``.

    So does the published canvas code of Graikos et al. (2024), although its steps go further. The last step has none.
    """
    bar, betas = schedule.alpha_bar, schedule.betas
    etas = [
        math.sqrt(float(betas[int(t)]) / (1 - float(bar[int(t)] / bar[int(after)])))
        for t, after in zip(times, times[1:])
    ]
    return [*etas, 0.0]


def _solver(
    config: SamplerConfig, schedule: Schedule, noise: solvers.Noise | None
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The solver function and what it is given beside x, times and conditions."""
    final = {"final": config.final}
    match config.solver:
        case "ddim":
            eta: Any = (
                training_etas(schedule, config.times(schedule))
                if config.eta == "training"
                else eta_function(config.eta)
            )
            return solvers.ddim, {"eta": eta, "noise": noise, **final}
        case "dpmpp_2m":
            return solvers.dpmpp_2m, final
        case "dpmpp_2m_sde":
            return solvers.dpmpp_2m, {"sde": True, "noise": noise, **final}
        case "dpmpp_3m":
            return dpmpp_3m, final
        case "ddpm":
            return solvers.ddpm, {"variance": config.variance, "noise": noise, **final}
        case "plms":
            return solvers.plms, final
        case "euler":
            return solvers.euler, {}
        case _:
            return solvers.heun, {}
