"""Object keypoint similarity, and COCO's average precision and recall made of it."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from body3d.skeletons import COCO17, JointSet

OKS_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 20  # per image
AREAS = {"": (0.0, 1e10), "M": (32.0**2, 96.0**2), "L": (96.0**2, 1e10)}  # pixels²
EPS = float(np.spacing(1))


def _variances(joints: JointSet, like: Tensor) -> Tensor:
    if joints.sigmas is None:
        raise ValueError(f"OKS needs the spreads of the joints; {joints.name} has none published")
    return (2 * torch.tensor(joints.sigmas, dtype=like.dtype, device=like.device)) ** 2


def oks(
    predicted: Float[Tensor, "N J 2"],
    truth: Float[Tensor, "M J 2"],
    visible: Bool[Tensor, "M J"],
    area: Float[Tensor, " M"],
    joints: JointSet = COCO17,
    boxes: Float[Tensor, "M 4"] | None = None,
) -> Float[Tensor, "N M"]:
    """Similarity of every prediction with every person: the mean of exp(-d² / (2 area (2 sigma)²)) over the visible joints.

    COCO's own rule (the survey's formula lacks the factor 2 beside sigma). A person without visible joints, for whom `boxes`
    (x, y, width, height) must be given, is compared by the distance to a box of three times its size.
    """
    d = predicted[:, None] - truth[None]
    none = ~visible.any(-1)
    if none.any() and boxes is not None:
        low, high = boxes[:, :2] - boxes[:, 2:], boxes[:, :2] + 2 * boxes[:, 2:]
        outside = (low[:, None] - predicted[:, None]).clamp_min(0) + (predicted[:, None] - high[:, None]).clamp_min(0)
        d = torch.where(none[None, :, None, None], outside, d)
    e = d.square().sum(-1) / _variances(joints, d) / (area[:, None] + EPS) / 2
    counts = visible | (none[:, None] if boxes is not None else torch.zeros_like(visible))
    return (torch.exp(-e) * counts).sum(-1) / counts.sum(-1)


def oks_between(
    keypoints: Float[Tensor, "N J 2"], area: Float[Tensor, " N"], joints: JointSet = COCO17
) -> Float[Tensor, "N N"]:
    """Similarity of predictions with each other: all joints count, the area is the mean of the two."""
    d2 = (keypoints[:, None] - keypoints[None]).square().sum(-1)
    scale = (area[:, None] + area[None]) / 2 + EPS
    return torch.exp(-d2 / _variances(joints, d2) / scale[..., None] / 2).mean(-1)


def oks_nms(similarity: Float[Tensor, "N N"], score: Float[Tensor, " N"], threshold: float) -> Int[Tensor, " K"]:
    """The predictions kept, best first: each that is not more similar than `threshold` to a better one kept."""
    kept: list[int] = []
    for n in score.argsort(descending=True, stable=True).tolist():
        if all(similarity[k, n] <= threshold for k in kept):
            kept.append(n)
    return torch.tensor(kept, dtype=torch.long)


def survey_map(best: Float[Tensor, " N"]) -> float:
    """ "mAP" as surveys define it for people that are given: the share of people whose OKS exceeds a threshold, averaged over
    0.5, 0.55 … 0.95. It knows no scores and no false positives: it is not COCO's AP."""
    return float(np.mean([(best > t).double().mean().item() for t in OKS_THRESHOLDS]))


@dataclass(frozen=True)
class Person:
    """One annotated person of an image, as COCO stores it."""

    keypoints: Float[np.ndarray, "J 3"]  # x, y, visibility (0 not labelled)
    area: float
    bbox: tuple[float, float, float, float]  # x, y, width, height
    iscrowd: bool = False


@dataclass(frozen=True)
class Found:
    keypoints: Float[np.ndarray, "J 2"]
    score: float


def coco_ap(truth: list[list[Person]], found: list[list[Found]], joints: JointSet = COCO17) -> dict[str, float]:
    """COCO's ten numbers for keypoints over images: AP, AP50, AP75, APM, APL, AR, AR50, AR75, ARM, ARL; -1 where undefined.

    The evaluation of pycocotools: at most 20 detections an image, best first; each takes the most similar free person above the
    threshold, people that are crowds, unlabelled or outside the range of areas count neither way; precision is made monotone
    and read at 101 recalls.
    """
    if len(truth) != len(found):
        raise ValueError(f"truth has {len(truth)} images, the predictions {len(found)}")
    ranked = [sorted(people, key=lambda p: -p.score)[:MAX_DETECTIONS] for people in found]
    similar = [_similarities(t, f, joints) for t, f in zip(truth, ranked, strict=True)]
    table = {name: _precision_recall(truth, ranked, similar, *limits) for name, limits in AREAS.items()}
    mean = lambda values: float(values[values > -1].mean()) if (values > -1).any() else -1.0
    at = lambda t: int(np.argmin(abs(OKS_THRESHOLDS - t)))
    out = {}
    for kind, which in (("AP", 0), ("AR", 1)):
        all_sizes = table[""][which]
        out |= {kind: mean(all_sizes), f"{kind}50": mean(all_sizes[at(0.5)]), f"{kind}75": mean(all_sizes[at(0.75)])}
        out |= {f"{kind}{size}": mean(table[size][which]) for size in ("M", "L")}
    return out


def _similarities(truth: list[Person], found: list[Found], joints: JointSet) -> Float[np.ndarray, "N M"]:
    if not truth or not found:
        return np.zeros((len(found), len(truth)))
    tensor = lambda values: torch.from_numpy(np.stack([np.asarray(v, np.float64) for v in values]))
    people = tensor([p.keypoints for p in truth])
    area, boxes = (tensor([getattr(p, name) for p in truth]) for name in ("area", "bbox"))
    return oks(tensor([f.keypoints for f in found]), people[..., :2], people[..., 2] > 0, area, joints, boxes).numpy()


def _precision_recall(truth, found, similar, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Precision (thresholds, recalls) and recall (thresholds, 1) for people of one range of areas; -1 if there are none."""
    scores, hits, ignored, people = [], [], [], 0
    for persons, detections, similarity in zip(truth, found, similar, strict=True):
        skip = np.array(
            [p.iscrowd or not (p.keypoints[:, 2] > 0).any() or not low <= p.area <= high for p in persons], bool
        )
        order = np.argsort(skip, kind="stable")
        people += int((~skip).sum())
        taken, unseen = _match(similarity[:, order], skip[order], np.array([p.iscrowd for p in persons], bool)[order])
        extent = np.array([np.prod(np.ptp(d.keypoints.astype(np.float64), axis=0)) for d in detections])
        outside = (extent < low) | (extent > high)
        scores += [d.score for d in detections]
        hits.append(taken)
        ignored.append(unseen | (~taken & outside))
    if people == 0:
        return np.full((len(OKS_THRESHOLDS), len(RECALLS)), -1.0), np.full((len(OKS_THRESHOLDS), 1), -1.0)
    rank = np.argsort(-np.array(scores), kind="mergesort")
    hit, ignore = np.concatenate(hits, 1)[:, rank], np.concatenate(ignored, 1)[:, rank]
    right, wrong = (np.cumsum(x & ~ignore, axis=1).astype(float) for x in (hit, ~hit))
    precision, recall = np.zeros((len(OKS_THRESHOLDS), len(RECALLS))), np.zeros((len(OKS_THRESHOLDS), 1))
    for t, (tp, fp) in enumerate(zip(right, wrong, strict=True)):
        reached = tp / people
        monotone = np.maximum.accumulate((tp / (fp + tp + EPS))[::-1])[::-1]
        at = np.searchsorted(reached, RECALLS, side="left")
        precision[t, at < len(tp)] = monotone[at[at < len(tp)]]
        recall[t] = reached[-1] if len(tp) else 0
    return precision, recall


def _match(similarity: np.ndarray, skip: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(thresholds, detections): whether each detection takes a person, and whether that person counts neither way.

    People that count come first in the columns; one that does is preferred to any that does not. A crowd can be taken again.
    """
    shape = (len(OKS_THRESHOLDS), len(similarity))
    taken, unseen = np.zeros(shape, bool), np.zeros(shape, bool)
    for t, threshold in enumerate(OKS_THRESHOLDS):
        free = np.ones(similarity.shape[1], bool)
        for n, row in enumerate(similarity):
            best, person = min(threshold, 1 - 1e-10), -1
            for m in np.flatnonzero(free | crowd):
                if person >= 0 and not skip[person] and skip[m]:
                    break
                if row[m] >= best:
                    best, person = row[m], m
            if person >= 0:
                taken[t, n], unseen[t, n], free[person] = True, skip[person], False
    return taken, unseen
