"""3DPCK and its area under the curve, by MPI-INF-3DHP's official rule (Mehta et al., 3DV 2017), and errors of absolute position."""

import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from body3d.metrics.mpjpe import joint_errors, masked_mean, root_relative

# Official: head top, neck, shoulders, elbows, wrists, hips, knees, ankles. The pelvis (root), spine and head of the 17 are not
# counted; papers that average all 17 report another number.
COUNTED14 = (
    "head_top", "neck", *(f"{s}_{j}" for s in ("right", "left") for j in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")),
)  # fmt: skip


def pck3d(
    predicted: Float[Tensor, "*B J 3"],
    truth: Float[Tensor, "*B J 3"],
    conf: Float[Tensor, "*B J"] | None = None,
    threshold: float = 0.150,
) -> Float[Tensor, "*B"]:
    """Share of joints strictly nearer than `threshold` metres; give root-relative poses of the joints that count."""
    return masked_mean((joint_errors(predicted, truth) < threshold).to(truth.dtype), conf)


def auc3d(
    predicted: Float[Tensor, "*B J 3"],
    truth: Float[Tensor, "*B J 3"],
    conf: Float[Tensor, "*B J"] | None = None,
    reach: float = 0.150,
) -> Float[Tensor, "*B"]:
    """Mean of `pck3d` over 31 thresholds, 0 to `reach` (150 mm) in equal steps; the first, 0, counts."""
    return torch.stack([pck3d(predicted, truth, conf, reach * i / 30) for i in range(31)]).mean(0)


def mrpe(predicted: Float[Tensor, "*B 3"], truth: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 4"]:
    """Error of the root's absolute position: its length, then |x|, |y|, |z| (Moon et al., ICCV 2019)."""
    difference = predicted - truth
    return torch.cat([difference.norm(dim=-1, keepdim=True), difference.abs()], -1)


def match_roots(
    predicted: Float[Tensor, "N 3"], truth: Float[Tensor, "M 3"], reach: float = float("inf")
) -> list[tuple[int, int]]:
    """(prediction, person) pairs of least total distance between roots, none further apart than `reach` metres."""
    distance = torch.cdist(predicted[None], truth[None])[0]
    rows, columns = linear_sum_assignment(distance.cpu().numpy())
    return [(int(n), int(m)) for n, m in zip(rows, columns, strict=True) if distance[n, m] <= reach]


def root_ap(
    predicted: list[Float[Tensor, "_ 3"]],
    scores: list[Float[Tensor, " _"]],
    truth: list[Float[Tensor, "_ 3"]],
    reach: float = 0.25,
) -> float:
    """Average precision of root joints over images: a prediction is right if an unclaimed root lies within 25 cm (AP25root of
    Moon et al., ICCV 2019). Predictions claim in order of score; precision is integrated over recall.
    """
    people = sum(len(t) for t in truth)
    if people == 0:
        raise ValueError("there is nobody in the truth: average precision is not defined")
    ranked = sorted(((-float(s), i, n) for i, each in enumerate(scores) for n, s in enumerate(each)))
    claimed = [torch.zeros(len(t), dtype=torch.bool) for t in truth]
    hits, area = 0, 0.0
    for rank, (_, image, n) in enumerate(ranked, 1):
        distance = (truth[image] - predicted[image][n]).norm(dim=-1).cpu()
        distance = torch.where(claimed[image], torch.inf, distance)
        if len(distance) and distance.min() <= reach:
            claimed[image][distance.argmin()] = True
            hits += 1
            area += hits / rank
    return area / people


def correct_people(
    predicted: Float[Tensor, "N J 3"], truth: Float[Tensor, "M J 3"], root: int, threshold: float = 0.150
) -> tuple[Bool[Tensor, "M J"], Bool[Tensor, "M J"], Bool[Tensor, " M"]]:
    """What is right in one image with several people: each joint in camera space, each from the root, and who has a match
    (3DPCK_abs and 3DPCK_rel of MuPoTS-3D, Moon et al., ICCV 2019).

    People are matched by their roots. All joints of a person without a match are wrong.
    """
    absolute = torch.zeros(truth.shape[:2], dtype=torch.bool, device=truth.device)
    relative, matched = absolute.clone(), absolute.new_zeros(len(truth))
    if pairs := match_roots(predicted[:, root], truth[:, root]):
        n, m = (list(rows) for rows in zip(*pairs, strict=True))
        p, t = predicted[n], truth[m]
        absolute[m] = joint_errors(p, t) < threshold
        relative[m] = joint_errors(root_relative(p, root), root_relative(t, root)) < threshold
        matched[m] = True
    return absolute, relative, matched
