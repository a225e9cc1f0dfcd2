"""Where a solver stands, and how to go on from there after a kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.files import atomic_path, content_hash
from morphogen.diffusion.canvas import Canvas, CanvasStore
from morphogen.diffusion.predictions import Prediction


class SolverState(NamedTuple):
    """All that a solver needs to go on: pass it in place of x."""

    step: int
    """Steps done: the index into the timesteps of the next one."""
    x: Tensor | Canvas
    """x at that step."""
    history: tuple[Tensor | Canvas, ...] = ()
    """Earlier predictions that a multistep solver still uses, the latest first."""


Callback = Callable[[SolverState, Prediction], Any]
"""Called after every step with the state and with the prediction the step was made from (for previews)."""


def begin(x: Tensor | Canvas | SolverState, start: int) -> SolverState:
    """The state a solver begins with: a tensor or canvas at step ``start``, or a state."""
    state = x if isinstance(x, SolverState) else SolverState(start, x)
    return state._replace(x=written(state.x))


def written(x: Any) -> Any:
    """A canvas computed and in an array of its store; a tensor as it is."""
    return x.store.save(x) if isinstance(x, Canvas) else x


def reached(callback: Callback | None, step: int, x: Any, prediction: Prediction, history: tuple = ()) -> Any:
    """End of a step: write a canvas down, tell the callback, and give x back."""
    x = written(x)
    if callback is not None:
        callback(SolverState(step, x, history), prediction)
    return x


def resumable(
    solver: Callable[..., Any], path: Path | str, *, every: int = 1, job: str = ""
) -> Callable[..., Any]:
    """The same solver, but it saves its state at ``path`` after every ``every`` steps and goes on from there.

    The result is the same to the bit as that of a run that was never stopped. The file stays when the solver is done
    (calling again returns the result at once); remove it when the result is safe.

    Parameters
    ----------
    solver:
        A solver of this package, or a :func:`functools.partial` of one.
    job:
        Anything that tells this job from another (seed, model hash, prompts). A state of another job, solver, option
        (eta, variance, final, …), schedule, list of timesteps, shape or set of conditions is refused with
        :class:`InputError`.
    """
    path = Path(path)
    function, given = _unwrapped(solver)

    def run(
        denoiser: Any,
        x: Any,
        timesteps: Any,
        schedule: Any,
        *,
        callback: Callback | None = None,
        **options: Any,
    ) -> Any:
        steps = len(timesteps)
        chosen = {k: _described(v, steps) for k, v in {**given, **options}.items() if v is not None}
        levels = [schedule.kind, schedule.table if schedule.table is not None else ""]
        mark = content_hash(function, list(timesteps), list(x.shape), job, chosen, levels)
        store = x.store if isinstance(x, Canvas) else None
        state = load_state(path, mark, store, x) if path.exists() else SolverState(0, x)
        saved = [state]  # keeps the arrays of the last saved state from being used again

        def save(state: SolverState, prediction: Prediction) -> None:
            if state.step % every == 0 or state.step == len(timesteps):
                # What is named in the file must be written, and stay: a canvas that is yet to be computed is neither.
                state = state._replace(history=tuple(written(each) for each in state.history))
                save_state(path, state, mark)
                saved[0] = state
            if callback is not None:
                callback(state, prediction)

        return solver(denoiser, state, timesteps, schedule, callback=save, **options)

    return run


def _unwrapped(solver: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """Name of the solver under all partials, and the options they set."""
    options: dict[str, Any] = {}
    while isinstance(solver, partial):
        options = {**solver.keywords, **options}
        solver = solver.func
    return f"{solver.__module__}.{solver.__qualname__}", options


def _described(value: Any, steps: int) -> Any:
    """What of an option tells one run from another: numbers and names as they are, functions of the progress by their
    values, the rest by its kind and shape (what it holds is the business of ``job``)."""
    if isinstance(value, (str, int, float, bool)):
        return repr(value)
    if isinstance(value, Mapping):
        return {str(key): _described(each, steps) for key, each in value.items() if each is not None}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [_described(each, steps) for each in value]
    if isinstance(value, (Tensor, Canvas)):
        return ["tensor", *map(int, value.shape)]
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if callable(value) and not hasattr(value, "seed"):
        try:  # eta: a function of the progress
            return [name, [float(value(i / max(steps - 1, 1))) for i in range(steps)]]
        except Exception:
            return name
    return [name, repr(getattr(value, "seed", ""))]


def save_state(path: Path | str, state: SolverState, mark: str = "") -> None:
    """Write a state atomically. Canvases are named, not copied: their arrays must outlive the file."""
    with atomic_path(path) as temporary:
        torch.save(
            {
                "mark": mark,
                "step": state.step,
                "x": _pack(state.x),
                "history": [_pack(each) for each in state.history],
            },
            temporary,
        )


def load_state(
    path: Path | str, mark: str = "", store: CanvasStore | None = None, like: Any = None
) -> SolverState:
    """Read a state; ``store`` holds its canvases, ``like`` gives the device for its tensors."""
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
        found, step, x, history = raw["mark"], raw["step"], raw["x"], raw["history"]
    except Exception as error:
        raise InputError(
            "this is not the state of a sampling run", where=path, fix="Delete it to start anew"
        ) from error
    if found != mark:
        raise InputError(
            "the state belongs to another job", where=path, fix="Delete it or choose another path"
        )
    device = like.device if isinstance(like, Tensor) else "cpu"
    return SolverState(
        step, _unpack(x, store, device), tuple(_unpack(each, store, device) for each in history)
    )


def _pack(value: Tensor | Canvas) -> Tensor | str:
    if isinstance(value, Canvas):
        saved = written(value)
        assert saved.array is not None
        saved.array.flush()
        return saved.array.name
    return value.detach().cpu().clone()


def _unpack(value: Tensor | str, store: CanvasStore | None, device: Any) -> Tensor | Canvas:
    if isinstance(value, str):
        if store is None:
            raise InputError("the state holds canvases on disk", fix="Give the store they live in")
        return store.open(value)
    return value.to(device) if store is None else store.save(value)
