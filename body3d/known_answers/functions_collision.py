"""The self-collision term that a published implementation answers for."""

import torch
from torch import Tensor

from body3d.body.conic import circumcircle, conic_field, intrusion
from body3d.known_answers.question import Adapter, Question

__all__ = ["ADAPTERS"]

# By the output's name: sigma, and whether the outer half of the cone counts. `p2plane` is the published code's other way to the
# same number.
VARIANTS = {
    "sigma05": (0.5, True),
    "sigma05_inside": (0.5, False),
    "sigma01": (0.1, True),
    "sigma1e4": (1e-4, True),
    "p2plane": (0.5, True),
}


def _conic_field(q: Question) -> dict[str, Tensor]:
    triangles, pairs = q["triangles"].clone().requires_grad_(), q["pairs"]
    centre, radius, _ = circumcircle(triangles)
    out = {
        "circumcentre": centre,
        "circumradius": radius.unsqueeze(-1),
        "psi05": intrusion(q["psi_x"], 0.5),
        "psi05_inside": intrusion(q["psi_x"], 0.5, outside=False),
    }
    for name, (sigma, outside) in VARIANTS.items():
        energy = conic_field(triangles, pairs, sigma, outside, released=True)
        out[name] = energy.sum(-1)
        out[f"{name}_per_pair"] = energy[(pairs >= 0).all(-1)]
    (out["sigma05_gradient"],) = torch.autograd.grad(out["sigma05"].sum(), triangles)
    return {key: value.detach() for key, value in out.items()}


ADAPTERS: dict[str, Adapter] = {"conic_field": _conic_field}
