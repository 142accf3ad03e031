"""Every term of the body fit as a Levenberg-Marquardt solver wants it: gradient and curvature from residuals and Jacobians.

The costs themselves are those of `terms`, so both solvers minimise the same number. A robust term counts by the slope of its
robustifier, rho' = (sigma² / (e² + sigma²))² (iteratively reweighted least squares); the mixture prior by its likeliest component;
the bending term, which is convex in one angle, by its exact curvature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.camera import Camera
from body3d.fit import terms
from body3d.fit.jacobian import PointJacobian
from body3d.fit.lm import Quadratic
from body3d.fit.terms import State, Target

if TYPE_CHECKING:
    from body3d.fit.problem import Problem, Stage

__all__ = ["Quadratics", "projection_jacobian"]


def projection_jacobian(camera: Camera, points: Float[Tensor, "*B N 3"]) -> Float[Tensor, "*B N 2 3"]:
    """How `camera.project` moves the pixel (rows: x, y) per metre that the world point moves."""
    xyz = camera.to_camera(points)
    z = xyz[..., 2:]
    xy = xyz[..., :2] / z
    flat = torch.cat([torch.eye(2).to(xyz).expand(*xy.shape[:-1], 2, 2), -xy.unsqueeze(-1)], -1) / z.unsqueeze(-1)
    if camera.distortion is not None:
        flat = _distortion_jacobian(xy, camera.distortion.unsqueeze(-2)) @ flat
    return camera.K[..., None, :2, :2] @ flat @ camera.R.unsqueeze(-3)


def _distortion_jacobian(xy: Float[Tensor, "*B 2"], d: Float[Tensor, "*#B 5"]) -> Float[Tensor, "*B 2 2"]:
    k1, k2, p1, p2, k3 = d.unbind(-1)
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    slope = 2 * (k1 + r2 * (2 * k2 + 3 * k3 * r2))
    mixed = x * y * slope + 2 * (p1 * x + p2 * y)
    xx = radial + x * x * slope + 2 * p1 * y + 6 * p2 * x
    yy = radial + y * y * slope + 6 * p1 * y + 2 * p2 * x
    return torch.stack([xx, mixed, mixed, yy], -1).unflatten(-1, (2, 2))


def robust_slope(squared: Float[Tensor, "*B"], sigma: float) -> Float[Tensor, "*B"]:
    """The derivative of Geman and McClure's robustifier by the squared residual: 1 near zero, 0 far away."""
    return (sigma**2 / (squared + sigma**2)).square()


class Quadratics:
    """The quadratic model of a problem's objective around any rows of unknowns."""

    def __init__(self, problem: Problem):
        self.problem = problem
        x = problem.unknowns
        self.points = PointJacobian(problem.points, torch.cat([problem.mix, problem.bone_mix]), x)
        # The prior's rows and columns in the order of the body's joints; a joint that it does not know has none.
        D = x.size("body")
        rows = [
            3 * problem.prior.joints.index(n) + a for n in x.body_joints if n in problem.prior.joints for a in range(3)
        ]
        columns = [3 * j + a for j, n in enumerate(x.body_joints) if n in problem.prior.joints for a in range(3)]
        whitening = problem.prior.whitening
        self.whitening = whitening.new_zeros(*whitening.shape[:2], D)
        self.whitening[:, :, columns] = whitening[:, :, rows]
        self.precision = self.whitening.mT @ self.whitening

    def __call__(self, x: Float[Tensor, "B D"], target: Target, stage: Stage, parts: Sequence[str]) -> Quadratic:
        """The stage's objective around x, in the unknowns of the parts."""
        problem = self.problem
        K, M = len(problem.names), len(problem.bones)
        params = problem.unknowns.params(x)
        by_code = self._by_code(x, parts)
        turned = parts if by_code is None else ["body" if n == "code" else n for n in parts]
        points, jacobian = self.points(params, turned)
        jacobian = self._coded(jacobian, by_code, parts)
        keypoints, bones = points.split([K, M], 1)
        depth, by_depth = points.new_zeros(len(x), 0), None
        if stage.collision > 0:
            depth, by_depth = problem.capsules(params, turned)
        state = problem.state(x, target, params, keypoints, bones, depth)
        cost = torch.stack(list(problem.costs(state, stage).values())).sum(0)

        r, J = self._reprojection(state, stage, keypoints, jacobian[:, :, :K])
        if M:
            lean = torch.cat([torch.full((problem.unknowns.size(n),), float(n == "lean")) for n in parts])
            of_bones = self._directions(state, stage, bones, jacobian[:, :, K:], lean.to(x))
            r, J = torch.cat([r, of_bones[0]], 1), torch.cat([J, of_bones[1]], 1)
        if by_depth is not None:
            r = torch.cat([r, stage.collision * depth], 1)
            J = torch.cat([J, stage.collision * self._coded(by_depth, by_code, parts)], 1)
        gradient = 2 * (r.unsqueeze(1) @ J).squeeze(1)
        curvature = 2 * (J.mT @ J)
        self._add_priors(state, stage, parts, by_code, gradient, curvature)
        return Quadratic(cost, gradient, curvature)

    def _by_code(self, x: Float[Tensor, "B D"], parts: Sequence[str]) -> Float[Tensor, "B P Z"] | None:
        """How a latent pose's rotation vectors move by its code; not at all where they are unknowns themselves."""
        unknowns = self.problem.unknowns
        if unknowns.latent is None or "code" not in parts:
            return None
        by_code = unknowns.latent.jacobian(unknowns.part(x, "code"))
        return torch.zeros_like(by_code) if "body" in parts else by_code

    def _coded(
        self, J: Float[Tensor, "B *R G"], by_code: Float[Tensor, "B P Z"] | None, parts: Sequence[str]
    ) -> Float[Tensor, "B *R F"]:
        """Derivatives by `parts` from those that have the body's rotation vectors where the code stands."""
        if by_code is None:
            return J
        start = sum(self.problem.unknowns.size(n) for n in parts[: list(parts).index("code")])
        before, body, after = J.tensor_split([start, start + by_code.shape[1]], -1)
        by_code = by_code.view(len(J), *[1] * (J.ndim - 3), *by_code.shape[1:])
        return torch.cat([before, body @ by_code, after], -1)

    def _reprojection(
        self, state: State, stage: Stage, points: Tensor, jacobian: Float[Tensor, "B 3 K F"]
    ) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R F"]]:
        """Weighted residuals, x before y, and their Jacobian."""
        problem = self.problem
        e = terms.reprojection(state)
        weight = problem.trust.data * (problem.weights(stage) * state.target.conf).unsqueeze(-1)
        root = weight * robust_slope(e.square(), problem.trust.sigma).sqrt()
        P = (root * terms.scale(state.target)).unsqueeze(-1) * projection_jacobian(problem.camera, points)
        J = (P.permute(0, 2, 3, 1).unsqueeze(-1) * jacobian.unsqueeze(1)).sum(2)
        return (root * e).mT.flatten(1), J.flatten(1, 2)

    def _directions(
        self, state: State, stage: Stage, bones: Tensor, jacobian: Float[Tensor, "B 3 M F"], lean: Float[Tensor, " F"]
    ) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R F"]]:
        """Weighted residuals, x before y before z, and their Jacobian; `lean` is 1 in the lean's column."""
        problem, e = self.problem, terms.direction_residual(state)
        slope = robust_slope(e.square().sum(-1), terms.ROBUST_DIRECTIONS)
        weight = stage.directions * (state.target.given.conf * slope).sqrt()
        # A unit vector d = b / |b| moves by (1 - d dᵀ) / |b| of what b moves by; a given direction leans by x × given.
        length = (bones.square().sum(-1, keepdim=True) + 1e-12).sqrt()
        d, length = ((t.mT.unsqueeze(-1)) for t in (bones / length, length))  # (B, 3, bones, 1)
        J = ((jacobian - d * (d * jacobian).sum(1, keepdim=True)) / length)[:, :, problem.stated]
        given = terms.leaning(state)
        turned = torch.stack([torch.zeros_like(given[..., 0]), -given[..., 2], given[..., 1]], 1) * problem.leans
        J = J - turned.unsqueeze(-1) * lean
        factor = weight / state.target.given.sigma
        return (weight.unsqueeze(-1) * e).mT.flatten(1), (factor[:, None, :, None] * J).flatten(1, 2)

    def _add_priors(
        self,
        state: State,
        stage: Stage,
        parts: Sequence[str],
        by_code: Tensor | None,
        gradient: Tensor,
        curvature: Tensor,
    ) -> None:
        """Adds everything that does not look at the image."""
        problem = self.problem
        at, stop = {}, 0
        for name in parts:
            at[name] = slice(stop, stop := stop + problem.unknowns.size(name))
        diagonal = curvature.diagonal(dim1=-2, dim2=-1)
        for name, weight in problem.ridge(stage).items():
            if name in at:
                gradient[:, at[name]] += 2 * weight * state.part(name)
                diagonal[:, at[name]] += 2 * weight
        if "shape" in at:
            (height, root), by = problem.height(stage), problem.height_by_shape
            off = problem.rest_height + state.part("shape") @ by - height
            gradient[:, at["shape"]] += 2 * root**2 * off.unsqueeze(-1) * by
            curvature[:, at["shape"], at["shape"]] += 2 * root**2 * by.unsqueeze(-1) * by
        bent = stage.bending * problem.bending.abs() * (2 * problem.bending * state.part("body")).exp()
        if by_code is not None and "body" not in at:
            code = at["code"]
            gradient[:, code] += ((2 * problem.bending * bent).unsqueeze(1) @ by_code).squeeze(1)
            curvature[:, code, code] += by_code.mT @ ((4 * bent).unsqueeze(-1) * by_code)
        if "body" in at:
            body = at["body"]
            gradient[:, body] += 2 * problem.bending * bent
            diagonal[:, body] += 4 * bent
            chosen = state.likelihood.argmin(-1)
            whitened = state.whitened.take_along_dim(chosen[:, None, None], 1)  # (B, 1, P)
            gradient[:, body] += stage.pose**2 * (whitened @ self.whitening[chosen]).squeeze(1)
            curvature[:, body, body] += stage.pose**2 * self.precision[chosen]
