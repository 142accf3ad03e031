"""The published procedure for one person: place the camera by the torso, then go through the stages over the whole mesh, from both
orientations where the view is from the side.

The steps are those of SMPLify-X's release (Pavlakos et al., CVPR 2019), which are SMPLify's but for the solver. The translation is
found in the first one and stays: the stages turn and bend the body, they do not carry it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from body3d.fit.published import Objective, Stage, Unknowns
from body3d.types import FitResult, Keypoints2D

__all__ = ["PublishedFit", "Reached", "Schedule", "fit_person", "half_turn", "minimise", "place", "result"]


# ---- the solver ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Schedule:
    """SMPLify-X's rules of stopping: a stage is up to `calls` calls of L-BFGS of up to `iterations` iterations each.

    A call also ends after 5/4 `iterations` evaluations, at a gradient below 1e-5 or a change below 1e-9. The stage ends when one
    call began at most `tolerance` (relative) below the one before it, or at a gradient below `gradient`. The value compared is
    that at the start of a call, so the test lags by one call, as published.
    """

    calls: int = 30
    iterations: int = 30
    history: int = 100
    rate: float = 1.0
    tolerance: float = 1e-9
    gradient: float = 1e-9


# What is worse counts as this much: the search's interpolation does not take infinity. A power of two, so that single precision
# holds it too and knows it again.
WALL = 2.0**50


@dataclass(frozen=True)
class Reached:
    x: Unknowns
    closures: int  # evaluations of cost and gradient
    iterations: int
    converged: bool  # not stopped by the limit of calls


def minimise(
    cost: Callable[[Unknowns], Float[Tensor, " 1"]], start: Unknowns, free: Sequence[str], schedule: Schedule
) -> Reached:
    """One row of unknowns, those named `free` moved to a minimum: PyTorch's L-BFGS with a strong Wolfe search, as SMPLify-X.

    SMPLify-X brings its own copy of that optimiser with the same constants. Its test of the gradient takes the absolute value of
    the largest entry, so that a negative gradient ends a stage early; here it is the largest absolute value. A search that runs
    off, as it may where rounding hides the slope, meets a wall; SMPLify-X stops there with NaN.
    """
    x = {name: value.detach().clone().requires_grad_(name in free) for name, value in start.items()}
    moving = [x[name] for name in free]
    optimizer = torch.optim.LBFGS(
        moving, schedule.rate, schedule.iterations, tolerance_grad=1e-5, tolerance_change=1e-9,
        history_size=schedule.history, line_search_fn="strong_wolfe",
    )  # fmt: skip
    closures, converged, previous = 0, False, math.inf

    def closure() -> Tensor:
        nonlocal closures
        optimizer.zero_grad()
        if all(t.isfinite().all() for t in moving):
            closures += 1
            value = cost(x).sum()
            value.backward()
            if value < WALL and all(t.grad is None or t.grad.isfinite().all() for t in moving):  # false for NaN
                return value.detach()
            optimizer.zero_grad()
        return moving[0].new_tensor(WALL)

    with torch.enable_grad():
        for _ in range(schedule.calls):
            value = optimizer.step(closure).item()
            if value >= WALL:
                break
            steady = (previous - value) / max(abs(previous), abs(value), 1.0) <= schedule.tolerance
            flat = all(t.grad is None or t.grad.abs().max() < schedule.gradient for t in moving)
            if converged := flat or (math.isfinite(previous) and steady):
                break
            previous = value
    iterations = int(optimizer.state_dict()["state"].get(0, {}).get("n_iter", 0))
    return Reached({name: t.detach() for name, t in x.items()}, closures, iterations, converged)


# ---- one person ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PublishedFit(FitResult):
    """A fitted person and what the solver spent: closures are evaluations of the objective with its gradient."""

    camera_closures: int = 0
    stage_closures: tuple[int, ...] = ()  # of both orientations where both were tried

    @property
    def closures(self) -> int:
        return self.camera_closures + sum(self.stage_closures)


def half_turn(orient: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
    """A root rotation vector after a half turn of the body about its own vertical axis."""
    turn = orient.new_tensor([0.0, math.pi, 0.0]).expand_as(orient)
    return roma.rotvec_composition((orient, turn))


DIFFERENT = 0.05  # metres: two ends whose points differ less in shape are the same one


@dataclass(frozen=True)
class _Run:
    x: Unknowns
    cost: float  # what orientations are compared by
    points: Float[Tensor, "K 3"]  # about their middle
    closures: tuple[int, ...]
    iterations: int
    converged: bool


def fit_person(
    objective: Objective,
    keypoints: Keypoints2D,
    start: Unknowns,
    stages: Sequence[Stage],
    schedule: Schedule,
    side_view_px: float,
    compare: Literal["objective", "reprojection"],
) -> PublishedFit:
    """The published procedure for one person: `objective` has one row, `keypoints` (J) is what goes into the result.

    The camera's step moves the root's rotation and the translation; the stages move all but the translation. If the shoulders are
    less than `side_view_px` pixels apart, the stages are gone through a second time from the body turned by 180°, and the end
    that is lower by `compare` counts. `iterations` are that end's; closures are all.
    """
    began = time.perf_counter()
    placed = place(objective, start, schedule)
    orients = {"as placed": placed.x["global_orient"]}
    shoulders = objective.xy[0, [objective.names.index(n) for n in ("left_shoulder", "right_shoulder")]]
    if (shoulders[0] - shoulders[1]).norm() < side_view_px:
        orients["turned by 180°"] = half_turn(placed.x["global_orient"])

    still = {"transl": placed.x["transl"]}
    runs = {
        label: _run_stages(objective, start | still | {"global_orient": orient}, stages, schedule, compare)
        for label, orient in orients.items()
    }
    label = min(runs, key=lambda name: runs[name].cost)
    best = runs[label]
    differ = lambda run: (run.points - best.points).norm(dim=-1).mean() > DIFFERENT
    others = [run.cost for name, run in runs.items() if name != label and differ(run)]
    return replace(
        result(objective, keypoints, best.x, stages[-1]),
        iterations=best.iterations,
        converged=best.converged,
        ambiguity=(others[0] - best.cost) / max(best.cost, 1e-12) if others else None,
        seconds=time.perf_counter() - began,
        start=label,
        warnings=() if best.converged else ("the solver stopped at its limit of calls",),
        camera_closures=placed.closures,
        stage_closures=tuple(sum(both) for both in zip(*(run.closures for run in runs.values()), strict=True)),
    )


@torch.no_grad()
def result(objective: Objective, keypoints: Keypoints2D, x: Unknowns, stage: Stage) -> PublishedFit:
    """What one row of unknowns means; `keypoints` (J) are the person's. How it was found is for the caller to fill in."""
    terms = {name: float(value[0]) for name, value in objective.terms(x, stage).items()}
    params, body, points = objective.points(x)
    error = (objective.camera.project(points) - objective.xy)[0].norm(dim=-1)
    counted = (objective.conf[0] > 0.3) & (objective.weights(Stage(0.0, 0.0, 0.0)) > 0)
    reprojection = error[counted].median().item() if counted.any() else math.nan
    return PublishedFit(
        params[0],
        objective.camera,
        keypoints,
        body[0],
        terms,
        reprojection,
        0,
        True,
        None,
        0.0,
        model=objective.model.kind,
    )


def place(objective: Objective, start: Unknowns, schedule: Schedule) -> Reached:
    """The first step: the depth by similar triangles, then translation and root rotation by the torso's four joints."""
    with torch.no_grad():
        depth = objective.depth_guess(start)
    transl = torch.stack([torch.zeros_like(depth), torch.zeros_like(depth), depth], -1)
    return minimise(
        lambda x: objective.camera_cost(x, depth), start | {"transl": transl}, ("transl", "global_orient"), schedule
    )


def _run_stages(objective: Objective, x: Unknowns, stages: Sequence[Stage], schedule: Schedule, compare: str) -> _Run:
    free = [name for name in x if name != "transl"]
    reached = [Reached(x, 0, 0, False)]
    for stage in stages:
        reached.append(minimise(lambda y, s=stage: objective.cost(y, s), reached[-1].x, free, schedule))
    with torch.no_grad():
        terms = objective.terms(reached[-1].x, stages[-1])
        points = objective.points(reached[-1].x)[2][0]
    cost = terms["reprojection"] if compare == "reprojection" else torch.stack(list(terms.values())).sum(0)
    return _Run(
        reached[-1].x, float(cost[0]), points - points.mean(0), tuple(r.closures for r in reached[1:]),
        sum(r.iterations for r in reached), reached[-1].converged,
    )  # fmt: skip
