"""Gaussian diffusion over tensors of any shape: schedules, predictions, losses, solvers, guidance, windows, noise.

One contract: ``denoiser(x, t, **condition) -> Prediction(x0, eps)``. A network becomes a denoiser with
:func:`network_denoiser`; :func:`guided` and :func:`windowed` make denoisers of denoisers; a solver is one function.
"""

from morphogen.diffusion import losses
from morphogen.diffusion.blending import WindowLayout, feather
from morphogen.diffusion.canvas import Canvas, CanvasStore
from morphogen.diffusion.guidance import column_guided, gradient_guided, guided
from morphogen.diffusion.multistep import dpmpp_3m
from morphogen.diffusion.noise import CanvasNoise, ItemNoise
from morphogen.diffusion.oracles import Mixture
from morphogen.diffusion.predictions import (
    Denoiser,
    Prediction,
    PredictionType,
    clipped,
    from_x0_eps,
    network_denoiser,
    to_x0_eps,
)
from morphogen.diffusion.sampler import SamplerConfig, expectation, sample
from morphogen.diffusion.schedules import Schedule
from morphogen.diffusion.solvers import ddim, ddim_invert, ddpm, dpmpp_2m, euler, heun, plms
from morphogen.diffusion.spacing import respaced, time_at_log_snr, timesteps
from morphogen.diffusion.state import SolverState, load_state, resumable, save_state
from morphogen.diffusion.windows import (
    Crop,
    PerWindow,
    map_windows,
    shifted_positions,
    shifted_windows,
    windowed,
)

__all__ = [
    "Canvas",
    "CanvasNoise",
    "CanvasStore",
    "Crop",
    "Denoiser",
    "ItemNoise",
    "Mixture",
    "PerWindow",
    "Prediction",
    "PredictionType",
    "SamplerConfig",
    "Schedule",
    "SolverState",
    "WindowLayout",
    "clipped",
    "column_guided",
    "ddim",
    "ddim_invert",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_3m",
    "euler",
    "expectation",
    "feather",
    "from_x0_eps",
    "gradient_guided",
    "guided",
    "heun",
    "load_state",
    "losses",
    "map_windows",
    "network_denoiser",
    "plms",
    "resumable",
    "respaced",
    "sample",
    "save_state",
    "shifted_positions",
    "shifted_windows",
    "time_at_log_snr",
    "timesteps",
    "to_x0_eps",
    "windowed",
]
