"""DeepCut: which candidates are parts, of what kind, and of which person, as one integer linear program.

Pishchulin et al., "DeepCut: Joint subset partition and labeling for multi person pose estimation", CVPR 2016. There are D
candidates and C kinds of part, joints here. The unknowns are 0 or 1: x_dc, candidate d is a c; y_dd', d and d' are of one person;
z_dd'cc' = x_dc x_d'c' y_dd'. Least is sought of

    sum alpha_dc x_dc + sum beta_dd'cc' z_dd'cc',    alpha = log((1 - p_dc) / p_dc),    beta = log((1 - p_dd'cc') / p_dd'cc').

Several candidates of one kind in one person are the same part found twice: to put them together is the non-maximum suppression.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import optimize, sparse
from torch import Tensor

from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.tensors import Tensors
from body3d.types import Keypoints2D

__all__ = [
    "Candidates", "GeometryModel", "Grouping", "Labelled", "Logistic", "assemble", "distance_features", "fit_geometry",
    "fit_logistic", "logits", "objective", "pair_examples", "solve", "stack_logistic",
    "symmetric", "turned",
]  # fmt: skip

CLIP = 1e-7  # of probabilities, as released


@dataclass(frozen=True)
class Candidates(Tensors):
    xy: Float[Tensor, "D C 2"]  # pixels: where the part is if the candidate is a part of this kind
    prob: Float[Tensor, "D C"]  # that it is one; 0: not considered


@dataclass(frozen=True)
class Grouping(Tensors):
    """Which part each candidate is and whose; -1 for both where it is none."""

    label: Int[Tensor, " D"]
    person: Int[Tensor, " D"]  # 0 to N - 1
    objective: float
    optimal: bool = True  # False: a time limit was hit


# ---- the program ---------------------------------------------------------------------------------------------------
def logits(prob: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """log((1 - p) / p): what it costs to take what has probability p."""
    p = prob.clamp(CLIP, 1 - CLIP)
    return ((1 - p) / p).log()


def objective(
    prob: Float[Tensor, "D C"], pair: Float[Tensor, "D D C C"], label: Int[Tensor, " D"], person: Int[Tensor, " D"]
) -> float:
    """What a solution costs; without any part, 0. Every pair counts once."""
    rows = (label >= 0).nonzero().squeeze(-1)
    alpha = logits(prob[rows, label[rows]].double()).sum()
    i, j = torch.triu_indices(len(rows), len(rows), 1, device=rows.device)
    i, j = rows[i], rows[j]
    together = person[i] == person[j]
    beta = logits(pair[i, j, label[i], label[j]].double())
    return float(alpha + (beta * together).sum())


def solve(
    prob: Float[Tensor, "D C"],
    pair: Float[Tensor, "_ _ _ _"],
    *,
    single: bool = False,
    known: Grouping | None = None,
    time_limit: float | None = None,
) -> Grouping:
    """The best solution. `pair[d, e, c, b]`: the probability that d and e are of one person if they are a c and a b.

    `pair` must be symmetric (pair[e, d, b, c] is the same number). `single`: there is one person at most. `known`: candidates
    that have a label there keep it, and their persons stay as they are; the others are free. `time_limit` is in seconds, of each
    of the programs that are solved.

    The constraints are the paper's (its joint program), to which two sums over z are added that hold wherever those do: they
    cut no solution off, only fractions. Transitivity is added where a solution violates it, until none does, as the authors do
    within their branch and cut. InputError for shapes that do not fit, and if no solution is found in time.
    """
    D, C = prob.shape
    if tuple(pair.shape) != (D, D, C, C):
        raise InputError(
            f"{D} candidates of {C} kinds need pairwise probabilities of the shape {(D, D, C, C)}, got {tuple(pair.shape)}"
        )
    p = prob.detach().double().cpu().numpy()
    if known is not None:
        held = known.label.cpu().numpy()
        rows = np.flatnonzero(held >= 0)
        p = np.where((held < 0)[:, None] | (np.arange(C) == held[:, None]), p, 0)
        p[rows, held[rows]] = np.maximum(p[rows, held[rows]], CLIP)
    program = _Program(p, pair.detach().double().cpu().numpy(), single)
    if known is not None:
        program.hold(known.label.cpu().numpy(), known.person.cpu().numpy())
    optimal = True
    while True:
        x, y, finished = program.run(time_limit)
        optimal = optimal and finished
        if not program.cut(y):
            break
    label = np.where(x.any(1), x.argmax(1), -1)
    person = _components(y, label)
    label, person = torch.from_numpy(label), torch.from_numpy(person)
    cost = objective(torch.from_numpy(p), pair.detach().cpu(), label, person)
    return Grouping(label.to(prob.device), person.to(prob.device), cost, optimal)


class _Program:
    """The variables x, y, z in one vector, and the rows of the constraints."""

    def __init__(self, prob: np.ndarray, pair: np.ndarray, single: bool):
        D, C = prob.shape
        allowed = prob > 0
        some = allowed.sum(1) > 0
        i, j = np.triu_indices(D, 1)
        both = some[i] & some[j]
        self.i, self.j, self.D = i[both], j[both], D
        d, c = np.nonzero(allowed)
        q, a, b = np.nonzero(allowed[self.i][:, :, None] & allowed[self.j][:, None, :])
        nx, ny, nz = len(d), len(self.i), len(q)
        self.d, self.c = d, c
        self.x, self.y = np.full((D, C), -1), np.full((D, D), -1)
        self.x[d, c] = np.arange(nx)
        self.y[self.i, self.j] = self.y[self.j, self.i] = nx + np.arange(ny)
        y, z = nx + np.arange(ny), nx + ny + np.arange(nz)
        xi, xj = self.x[self.i[q], a], self.x[self.j[q], b]
        alpha = logits(torch.from_numpy(prob[d, c])).numpy()
        beta = logits(torch.from_numpy(pair[self.i[q], self.j[q], a, b])).numpy()
        self.cost = np.concatenate([alpha, np.zeros(ny), beta])
        # z follows from x and y.
        self.whole = np.concatenate([np.ones(nx + ny), np.zeros(nz)])
        self.low, self.high = np.zeros(len(self.cost)), np.ones(len(self.cost))
        self.rows: list[sparse.csr_array] = []
        self.limits: list[np.ndarray] = []
        one = np.ones
        # At most one kind each.
        self.add([(d, np.arange(nx), one(nx))], D, 1)
        # Only parts are of a person.
        for end in (self.i, self.j):
            of = np.nonzero(end[:, None] == d)
            self.add([(np.arange(ny), y, one(ny)), (of[0], of[1], -one(len(of[0])))], ny, 0)
        # z = x x y.
        r = np.arange(nz)
        self.add([(r, xi, one(nz)), (r, xj, one(nz)), (r, y[q], one(nz)), (r, z, -one(nz))], nz, 2)
        for variable in (xi, xj, y[q]):
            self.add([(r, z, one(nz)), (r, variable, -one(nz))], nz, 0)
        # The two sums: over the kinds of one end, z is at most x of the other end; over all, it is y.
        for end, kind in ((self.i, a), (self.j, b)):
            group = q * C + kind
            used, row = np.unique(group, return_inverse=True)
            x = self.x[end[used // C], used % C]
            n = len(used)
            self.add([(row, z, one(nz)), (np.arange(n), x, -one(n))], n, 0)
        self.add([(np.arange(ny), y, one(ny)), (q, z, -one(nz))], ny, 0)
        if single:
            of_i, of_j = (np.nonzero(end[:, None] == d) for end in (self.i, self.j))
            ends = [(of[0], of[1], one(len(of[0]))) for of in (of_i, of_j)]
            self.add([*ends, (np.arange(ny), y, -one(ny))], ny, 1)

    def add(self, entries: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], count: int, limit: int) -> None:
        """Rows that must not exceed `limit`, as (row, variable, factor)."""
        row, column, factor = (np.concatenate(values) for values in zip(*entries, strict=True))
        self.rows.append(sparse.csr_array((factor, (row, column)), shape=(count, len(self.cost))))
        self.limits.append(np.full(count, float(limit)))

    def hold(self, label: np.ndarray, person: np.ndarray) -> None:
        rows = np.flatnonzero(label >= 0)
        self.low[self.x[rows, label[rows]]] = 1
        i, j = (rows[k] for k in np.triu_indices(len(rows), 1))
        together = person[i] == person[j]
        self.low[self.y[i, j]] = self.high[self.y[i, j]] = together

    def run(self, time_limit: float | None) -> tuple[np.ndarray, np.ndarray, bool]:
        """x (D, C), y (D, D), and whether it is the best."""
        if not len(self.cost):
            return np.zeros(self.x.shape, bool), np.zeros(self.y.shape, bool), True
        options = {"mip_rel_gap": 0.0} | ({} if time_limit is None else {"time_limit": time_limit})
        rows = optimize.LinearConstraint(sparse.vstack(self.rows), ub=np.concatenate(self.limits))  # type: ignore[arg-type]
        bounds = optimize.Bounds(self.low, self.high)  # type: ignore[arg-type]
        found = optimize.milp(self.cost, integrality=self.whole, bounds=bounds, constraints=rows, options=options)
        if found.x is None:
            raise InputError(
                f"no grouping of {self.D} candidates was found: {found.message}; give more time or fewer of them"
            )
        value = np.append(found.x > 0.5, False)  # -1: no such variable
        return value[self.x], value[self.y], found.status == 0

    def cut(self, y: np.ndarray) -> bool:
        """Add y_ij + y_jk - 1 <= y_ik where it is violated. False if nowhere."""
        i, j, k = np.nonzero(y[:, :, None] & y[None, :, :] & ~y[:, None, :])
        first = i < k  # i = k is no triple; (k, j, i) is the same row
        i, j, k = i[first], j[first], k[first]
        n = len(i)
        if n:
            r, one = np.arange(n), np.ones(n)
            self.add([(r, self.y[i, j], one), (r, self.y[j, k], one), (r, self.y[i, k], -one)], n, 1)
        return n > 0


def _components(y: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The person of each part, numbered by their first candidates."""
    person = np.full(len(label), -1)
    count = 0
    for d in np.flatnonzero(label >= 0):
        if person[d] < 0:
            person[d] = count
            person[y[d]] = count
            count += 1
    return person


def assemble(candidates: Candidates, grouping: Grouping, joints: JointSet, least: int = 1) -> Keypoints2D:
    """The people with at least `least` joints, those with the most confidence first: (N, C).

    A joint is the mean of its candidates, weighted by their probabilities; its confidence is the highest of them.
    """
    C = candidates.prob.shape[1]
    if len(joints) != C:
        raise InputError(f"the candidates are of {C} kinds, {joints.name} has {len(joints)} joints")
    rows = (grouping.label >= 0).nonzero().squeeze(-1)
    label, person = grouping.label[rows], grouping.person[rows]
    people = int(person.max()) + 1 if len(rows) else 0
    cell = person * C + label
    prob, xy = candidates.prob[rows, label], candidates.xy[rows, label]
    total = prob.new_zeros(people * C).index_add_(0, cell, prob)
    place = xy.new_zeros(people * C, 2).index_add_(0, cell, xy * prob[:, None])
    place = (place / total.clamp_min(1e-12)[:, None]).unflatten(0, (people, C))
    best = prob.new_zeros(people * C).scatter_reduce_(0, cell, prob, "amax").unflatten(0, (people, C))
    enough = ((best > 0).sum(-1) >= least).nonzero().squeeze(-1)
    order = enough[best[enough].sum(-1).argsort(descending=True, stable=True)]
    return Keypoints2D(place[order], best[order], joints)


# ---- probabilities of pairs ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Logistic(Tensors):
    """Logistic regressions of features that are scaled to 0..1 over what was learnt from; 0.5 where there was nothing."""

    low: Float[Tensor, "*B F"]
    high: Float[Tensor, "*B F"]
    weight: Float[Tensor, "*B F"]
    bias: Float[Tensor, "*B"]

    def __call__(self, features: Float[Tensor, "*A F"]) -> Float[Tensor, "*A"]:
        scaled = (features - self.low) / torch.where(self.high > self.low, self.high - self.low, 1)
        return ((scaled * self.weight).sum(-1) + self.bias).sigmoid()


def fit_logistic(features: Float[Tensor, "N F"], same: Float[Tensor, " N"], C: float = 1.0) -> Logistic:
    """Least |w|^2 / 2 + C times the log loss, the bias being one of w, as in LIBLINEAR (C is 1e-3 in the release).

    From examples of one kind alone nothing is learnt: all probabilities are 0.5.
    """
    F = features.shape[-1]
    if len(same) == 0 or same.min() == same.max():
        zero = features.new_zeros(F)
        return Logistic(zero, zero, zero, features.new_zeros(()))
    low, high = features.amin(0), features.amax(0)
    scaled = (features - low) / torch.where(high > low, high - low, 1)
    x = torch.cat([scaled, torch.ones_like(same)[:, None]], -1).double().numpy()
    sign = (2 * same - 1).double().numpy()

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ w)
        slope = -sign / (1 + np.exp(np.clip(margin, -700, 700)))
        return w @ w / 2 + C * np.logaddexp(0, -margin).sum(), w + C * x.T @ slope

    w = torch.from_numpy(optimize.minimize(loss, np.zeros(F + 1), jac=True, method="L-BFGS-B").x).to(features)
    return Logistic(low, high, w[:-1], w[-1])


def stack_logistic(models: Sequence[Logistic]) -> Logistic:
    return Logistic(*(torch.stack([getattr(m, name) for m in models]) for name in ("low", "high", "weight", "bias")))


@dataclass(frozen=True)
class Labelled(Tensors):
    """Candidates of one image to learn from: what each is, and whose."""

    xy: Float[Tensor, "D 2"]
    label: Int[Tensor, " D"]
    person: Int[Tensor, " D"]


def pair_examples(scene: Labelled, first: int, second: int) -> tuple[Int[Tensor, "N 2"], Float[Tensor, " N"]]:
    """Pairs of candidates of two kinds (each once, if they are one kind), and 1 where they are of one person, else 0."""
    i = (scene.label == first).nonzero().squeeze(-1)
    j = (scene.label == second).nonzero().squeeze(-1)
    pairs = torch.cartesian_prod(i, j).reshape(-1, 2)
    if first == second:
        pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    return pairs, (scene.person[pairs[:, 0]] == scene.person[pairs[:, 1]]).to(scene.xy)


def distance_features(step: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B 2"]:
    """Of two candidates of one kind: how far they are apart, and its square, as released."""
    d = step.norm(dim=-1)
    return torch.stack([d, d.square()], -1)


def turned(angle: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """An angle brought to -pi..pi."""
    return torch.atan2(angle.sin(), angle.cos())


def _geometry(step: Float[Tensor, "*B 2"], mean: Float[Tensor, "*#B 3"]) -> Float[Tensor, "*B 13"]:
    """Of two candidates of different kinds, from `step` (pixels) less its mean, and its angle less its mean: as released."""
    x, y = (step - mean[..., :2]).unbind(-1)
    a = turned(torch.atan2(step[..., 1], step[..., 0]) - mean[..., 2])
    d = torch.hypot(x, y)
    squares = [x * y, x * x, y * y, (x * y).square()]
    angles = [a, a * a, a.abs(), torch.exp(-a.abs())]
    return torch.stack([x, y, *squares, *angles, d, d * d, torch.exp(-d)], -1)


@dataclass(frozen=True)
class GeometryModel(Tensors):
    """p_dd'cc' from where the candidates are alone. People are expected at the scale that was learnt from."""

    mean: Float[Tensor, "C C 3"]  # of steps from c to c' in one person: pixels and radians
    other: Logistic  # (C, C): kinds that differ, of which the first is the lower
    same: Logistic  # (C)

    def probability(self, candidates: Candidates) -> Float[Tensor, "D D C C"]:
        step = candidates.xy[None, :, None, :] - candidates.xy[:, None, :, None]
        model = self.to(step.device)
        return symmetric(model.other(_geometry(step, model.mean)), model.same(distance_features(diagonal(step))))


def diagonal(of_pairs: Float[Tensor, "D D C C 2"]) -> Float[Tensor, "D D C 2"]:
    """The entries of pairs of one kind."""
    return of_pairs.diagonal(dim1=2, dim2=3).movedim(-1, -2)


def symmetric(other: Float[Tensor, "D D C C"], same: Float[Tensor, "D D C"]) -> Float[Tensor, "D D C C"]:
    """Probabilities known where the first kind is lower, and of equal kinds, as those of all pairs in any order."""
    upper = other.triu(1)
    return upper + upper.permute(1, 0, 3, 2) + torch.diag_embed(same)


def fit_geometry(scenes: Sequence[Labelled], kinds: int, C: float = 1.0) -> GeometryModel:
    """Learn from annotated images, best from candidates of a detector: parts found twice teach what is the same part. On the CPU,
    wherever they are."""
    scenes = [scene.to("cpu") for scene in scenes]
    nothing = fit_logistic(torch.zeros(0, 13), torch.zeros(0))
    other, mean, same = [nothing] * kinds**2, torch.zeros(kinds, kinds, 3), []
    for c in range(kinds):
        for b in range(c, kinds):
            found = [pair_examples(scene, c, b) for scene in scenes]
            ends = [s.xy[pairs] for s, (pairs, _) in zip(scenes, found, strict=True)]
            step = torch.cat([torch.zeros(0, 2), *(e[:, 1] - e[:, 0] for e in ends)])
            together = torch.cat([torch.zeros(0), *(t for _, t in found)])
            if c == b:
                same.append(fit_logistic(distance_features(step), together, C))
            elif together.any():
                ours = step[together > 0]
                unit = torch.nn.functional.normalize(ours, dim=-1).mean(0)
                mean[c, b] = torch.cat([ours.mean(0), torch.atan2(unit[1], unit[0])[None]])
                other[c * kinds + b] = fit_logistic(_geometry(step, mean[c, b]), together, C)
    return GeometryModel(
        mean, stack_logistic(other).map(lambda t: t.unflatten(0, (kinds, kinds))), stack_logistic(same)
    )
