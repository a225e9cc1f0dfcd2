"""The unit of what a regression leaves over, as a function of its answer: little where it is sure, more where not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Knots = tuple[tuple[tuple[float, float], ...], ...]
_LEAST = 0.02  # of the spread of all


class LocalUnit:
    """A piecewise linear function of the regression's answer for every channel of the target, constant beyond its ends.

    The answer is looked at as the mean over 3 × 3 cells, so that the unit changes more slowly than the answer.

    knots: of every channel, (answer, unit). together: channels of a cell that are pixels of one channel of the target.

    >>> unit = LocalUnit((((-1.0, 0.5), (1.0, 1.5)),))
    >>> unit(torch.zeros(1, 1, 2, 2)).unique()
    tensor([1.])
    """

    def __init__(self, knots: Knots, together: int = 1) -> None:
        self.knots, self.together = knots, together

    def __call__(self, base: Tensor) -> Tensor:
        """Answers (B, C, h, w) → units (B, C, h, w)."""
        seen = surroundings(base, self.together)
        found = [interpolated(seen[:, k], knots) for k, knots in enumerate(self.knots)]
        return torch.stack(found, dim=1).repeat_interleave(self.together, dim=1)

    @classmethod
    def fitted(cls, base: Tensor, rest: Tensor, seen: Tensor, knots: int, together: int = 1) -> LocalUnit:
        """The root mean square of ``rest`` (B, C, h, w) in ``knots`` equally large groups of the answers ``base``,
        where ``seen`` (B, 1, h, w) is 1; on average over these places its square is 1."""
        answers = surroundings(base, together)
        squares = rest.square().unflatten(1, (-1, together)).mean(dim=2)
        keep, made = seen[:, 0] > 0, []
        for k in range(answers.shape[1]):
            x, y = answers[:, k][keep].double(), squares[:, k][keep].double()
            whole = y.mean().clamp(min=1e-12)
            groups = x.sort().indices.tensor_split(knots)
            points: dict[float, float] = {}
            for group in groups:
                if len(group):
                    place = round(float(x[group].mean()), 5)
                    points[place] = round(max(float((y[group].mean() / whole).sqrt()), _LEAST), 5)
            made.append(tuple(sorted(points.items())))
        return cls(tuple(made), together)


def surroundings(base: Tensor, together: int) -> Tensor:
    """(B, C, h, w) → (B, C/together, h, w): means over the pixels of a cell and the cells around it."""
    cells = base.unflatten(1, (-1, together)).mean(dim=2)
    return F.avg_pool2d(cells, 3, stride=1, padding=1, count_include_pad=False)


def interpolated(x: Tensor, knots: Sequence[tuple[float, float]]) -> Tensor:
    """Piecewise linear through ``knots``, in ascending order; constant beyond them."""
    at, value = torch.tensor(knots, dtype=x.dtype, device=x.device).T.contiguous()
    if len(at) == 1:
        return value.expand_as(x)
    right = torch.bucketize(x.contiguous(), at).clamp(1, len(at) - 1)
    share = ((x - at[right - 1]) / (at[right] - at[right - 1])).clamp(0, 1)
    return torch.lerp(value[right - 1], value[right], share)
