"""After a fit: what of the body is inside itself, moved apart and said."""

from dataclasses import replace

import torch

from body3d.body.collision import Penetration, penetrations
from body3d.body.definitions import Mixture, mixtures
from body3d.body.model import BodyModel
from body3d.body.parts import body_parts
from body3d.fit.collision import resolve
from body3d.fit.findings import measured
from body3d.fit.solve import few_threads
from body3d.types import FitResult

__all__ = ["inspected"]

TOLERATED = 0.002  # metres
WORTH_A_WARNING = 0.01  # metres, of what is left


def inspected(result: FitResult, model: BodyModel, apart: bool, on_body: dict[str, Mixture] | None = None) -> FitResult:
    """The fit with its remaining penetration; `apart` moves parts that are inside each other apart first.

    Distances from the keypoints, of which `on_body` says where on the body they lie where their names do not, are those of the body
    that comes out; `terms` and standard deviations stay those of the solver's.
    """
    parts = body_parts(model)
    found = penetrations(result.body.mesh.verts.numpy(force=True), parts)
    if apart and found and found[0].depth > TOLERATED:
        with few_threads(1), torch.no_grad():
            resolution = resolve(model, result.params, tolerance=TOLERATED, parts=parts)
            moved = replace(result, params=resolution.params, body=model(resolution.params))
        where = mixtures(model.keypoints, result.keypoints.joints, on_body)
        result, found = measured(moved, where, model), resolution.after
    warnings = tuple(f"the body passes through itself: {p}" for p in found[:1] if p.depth > WORTH_A_WARNING)
    return replace(result, penetration=_by_words(found), warnings=result.warnings + warnings)


def _by_words(found: list[Penetration]) -> dict[str, float]:
    """The deepest of each pair of regions, whichever is said to be inside the other."""
    out: dict[tuple[str, str], Penetration] = {}
    for p in found:  # the deepest first
        a, b = sorted((p.inner, p.outer))
        out.setdefault((a, b), p)
    return {f"{p.inner} in {p.outer}": p.depth for p in out.values()}
