"""The embedded 2D front end against annotated photos: who is found, how well, who is invented, how long it takes.

`python -m body3d.benchmarks.detector --coco PHOTOS coco_wholebody_val_v1.0.json --lspet data/lspet` prints the tables of
docs/benchmarks.md.
"""

import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from body3d.detect.embedded import detect_embedded
from body3d.detect.files import read_keypoints
from body3d.errors import InputError
from body3d.images import read_image
from body3d.joint_set import mirrored
from body3d.learn.crops import lspet
from body3d.skeletons import COCO17, COCO_WHOLEBODY133, FACE68, HAND21, LSP14
from body3d.types import Boxes, Detections, Keypoints2D

FOUND = 0.5  # OKS from which an annotated person counts as found
HAND_REACH = 0.2  # a hand point is right within this share of the hand's box

# Of LSPET's points neck and head top have no counterpart among the detector's keypoints.
LSPET12 = tuple(name for name in LSP14.names if name in COCO_WHOLEBODY133)


def oks(found: Keypoints2D, truth: Keypoints2D, area: Float[Tensor, " M"]) -> Float[Tensor, "N M"]:
    """Object keypoint similarity (COCO) of N found with M annotated people over the annotated joints of COCO17."""
    a, b = found.convert(COCO17), truth.convert(COCO17)
    assert COCO17.sigmas is not None
    spread = (2 * torch.tensor(COCO17.sigmas)) ** 2
    distance2 = (a.xy[:, None] - b.xy[None]).square().sum(-1)
    labelled = (b.conf > 0).float()
    similarity = torch.exp(-distance2 / (2 * spread * area[:, None].clamp_min(1)))
    return (similarity * labelled).sum(-1) / labelled.sum(-1).clamp_min(1)


# ---- COCO ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CocoFigures:
    """Over the annotated people of some photos."""

    best: list[float]  # of each annotated person: the best OKS on the whole image
    boxed: list[float]  # of each annotated person: OKS with its box given
    ghosts: int  # reported people that match nobody (OKS < 0.1) and do not lie on somebody without keypoints
    face: list[float]  # of each annotated face, box given: mean error over the distance of the outer eye corners
    faces: int  # annotated
    hand: list[float]  # of each annotated hand, box given: share of points within HAND_REACH of the box
    hands: int  # annotated
    seconds: list[float]  # per photo, whole image


def coco_figures(photos: Path, annotations: Path) -> CocoFigures:
    """Of all photos (000000000139.jpg) in a folder, whose people are in a file of COCO-WholeBody."""
    out = CocoFigures([], [], 0, [], 0, [], 0, [])
    ghosts = faces = hands = 0
    everybody = json.loads(annotations.read_text())["annotations"]
    for photo in sorted(photos.glob("*.jpg")):
        image = read_image(photo)
        truth = read_keypoints(annotations, photo)
        area = torch.tensor([a["area"] for a in everybody if a["image_id"] == int(photo.stem) and a["num_keypoints"]])
        began = time.perf_counter()
        found = detect_embedded(image)
        out.seconds.append(time.perf_counter() - began)
        similar = oks(found.keypoints, truth.keypoints, area)
        out.best.extend(similar.amax(0).tolist() if len(found) else [0.0] * len(truth))
        ghosts += int((similar.amax(1) < 0.1).sum())
        boxed = detect_embedded(image, boxes=truth.boxes)
        out.boxed.extend(oks(boxed.keypoints, truth.keypoints, area).diagonal().tolist())
        for person in range(len(truth)):
            error = face_error(boxed.keypoints[person], truth.keypoints[person])
            faces += error is not None
            out.face.extend([error] if error is not None and error < float("inf") else [])
            for side in HAND21:
                share = hand_share(boxed.keypoints[person], truth.keypoints[person], side)
                hands += share is not None
                out.hand.extend([share] if share is not None and share >= 0 else [])
    return CocoFigures(out.best, out.boxed, ghosts, out.face, faces, out.hand, hands, out.seconds)


def face_error(found: Keypoints2D, truth: Keypoints2D) -> float | None:
    """Mean distance over the distance of the outer eye corners; infinite if not detected, None if not annotated."""
    rows = COCO_WHOLEBODY133.indices(FACE68.names)
    if (truth.conf[rows] <= 0).any():
        return None
    if (found.conf[rows] <= 0).all():
        return float("inf")
    corners = COCO_WHOLEBODY133.indices(("right_eye_outer", "left_eye_outer"))
    between = (truth.xy[corners[0]] - truth.xy[corners[1]]).norm()
    return ((found.xy - truth.xy)[rows].norm(dim=-1).mean() / between).item()


def hand_share(found: Keypoints2D, truth: Keypoints2D, side: str) -> float | None:
    """Share of the annotated points within reach; -1 if the hand is not detected, None if it is not annotated."""
    rows = [r for r in COCO_WHOLEBODY133.indices(HAND21[side].names) if truth.conf[r] > 0]
    if len(rows) < 15:
        return None
    if (found.conf[rows] <= 0).all():
        return -1.0
    box = (truth.xy[rows].amax(0) - truth.xy[rows].amin(0)).max()
    return ((found.xy - truth.xy)[rows].norm(dim=-1) < HAND_REACH * box).float().mean().item()


# ---- LSPET ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LspetFigures:
    photos: int
    found: float  # share of photos in which half of the person's joints are within 0.2 torso
    somebody: float  # share of photos in which anybody was reported
    swapped: float  # share found only once left and right are exchanged
    pck: float  # share of joints within 0.2 torso, over the people found
    calibration: list[tuple[float, float, int]]  # confidence from, share of joints within 0.2 torso, joints
    seconds: float  # per photo, mean


def sample_of_lspet(folder: Path, photos: int, seed: int) -> list[tuple[Path, Float[Tensor, "12 3"]]]:
    """A random sample of the photos: each with where the limbs' joints are, and 1 if that is known."""
    people = lspet().training(folder)
    if people.images is None:
        raise InputError(f"{folder} has annotations but no images/")
    rows = LSP14.indices(LSPET12)
    chosen = sorted(np.random.default_rng(seed).permutation(len(people))[:photos].tolist())
    points = torch.cat([people.xy.float(), people.labelled[..., None].float()], -1)[:, rows]
    return [(people.images / people.files[i], points[i]) for i in chosen]


def lspet_figures(folder: Path, photos: int, seed: int = 0) -> LspetFigures:
    """One annotated person each, others may stand around."""
    chosen = sample_of_lspet(folder, photos, seed)
    found, somebody, swapped, confidence, right, seconds = [], [], [], [], [], []
    rows = COCO_WHOLEBODY133.indices(LSPET12)
    mirror_rows = COCO_WHOLEBODY133.indices([mirrored(name) for name in LSPET12])
    for path, joints in tqdm(chosen, desc="LSPET"):
        image = read_image(path)
        began = time.perf_counter()
        people = detect_embedded(image)
        seconds.append(time.perf_counter() - began)
        hit, mirror = within(people, rows, joints), within(people, mirror_rows, joints)
        share, share_mirror = (h.float().mean(1).amax().item() if len(people) else 0.0 for h in (hit, mirror))
        somebody.append(len(people) > 0)
        found.append(share >= 0.5)
        swapped.append(share < 0.5 <= share_mirror)
        if found[-1]:
            person = int(hit.float().mean(1).argmax())
            right += hit[person].tolist()
            confidence += people.keypoints.conf[person, rows][joints[:, 2] > 0].tolist()
    conf, good = np.array(confidence), np.array(right)
    edges = (0.0, 0.3, 0.5, 0.7, 0.9, 0.97, 1.01)
    bins = [(lo, (conf >= lo) & (conf < hi)) for lo, hi in itertools.pairwise(edges)]
    calibration = [(lo, float(good[m].mean()), int(m.sum())) for lo, m in bins if m.any()]
    mean = lambda values: float(np.mean(values))
    return LspetFigures(len(chosen), mean(found), mean(somebody), mean(swapped), mean(good), calibration, mean(seconds))


def within(people: Detections, rows: list[int], joints: Float[Tensor, "12 3"]) -> Bool[Tensor, "N K"]:
    """Which of the K annotated joints lie within 0.2 of the torso's longer diagonal."""
    xy = dict(zip(LSPET12, joints[:, :2], strict=True))
    diagonals = [(xy["right_shoulder"] - xy["left_hip"]).norm(), (xy["left_shoulder"] - xy["right_hip"]).norm()]
    torso = max(max(d.item() for d in diagonals), 1.0)
    annotated = joints[:, 2] > 0
    distance = (people.keypoints.xy[:, rows] - joints[:, :2]).norm(dim=-1)
    return distance[:, annotated] < 0.2 * torso


def main(coco: tuple[Path, Path] | None = None, lspet: Path | None = None, lspet_photos: int = 150) -> None:
    """Print the figures of the embedded front end.

    Args:
        coco: folder of COCO's photos, and COCO-WholeBody's file about them.
        lspet: folder of LSPET.
        lspet_photos: how many of its photos to look at.
    """
    warm_up = np.zeros((64, 64, 3), np.uint8)
    detect_embedded(warm_up, boxes=Boxes(torch.tensor([[0.0, 0, 64, 64]]), torch.ones(1)))
    if coco is not None:
        c = coco_figures(*coco)
        people, hits = len(c.best), sum(b > FOUND for b in c.best)
        print(f"COCO, whole image: {hits} of {people} people found (OKS > {FOUND}), {c.ghosts} ghosts")
        print(
            f"  mean OKS {np.mean(c.best):.3f}; {np.mean(c.seconds):.2f} s per photo (at most {max(c.seconds):.2f} s)"
        )
        print(f"COCO, boxes given: mean OKS {np.mean(c.boxed):.3f}")
        print(f"  faces: {len(c.face)} of {c.faces} detected, error {np.mean(c.face):.3f} of the eyes' distance")
        right = f", {np.mean(c.hand):.0%} of their points within {HAND_REACH} of the hand's box" if c.hand else ""
        print(f"  hands: {len(c.hand)} of {c.hands} detected{right}")
    if lspet is not None:
        s = lspet_figures(lspet, lspet_photos)
        print(
            f"LSPET, {s.photos} photos: {s.found:.1%} found, "
            f"{s.somebody:.1%} with anybody, {s.swapped:.1%} left and right swapped"
        )
        print(f"  of those found, {s.pck:.1%} of the joints within 0.2 torso; {s.seconds:.2f} s per photo")
        for low, share, n in s.calibration:
            print(f"  confidence from {low:.2f}: {share:.0%} right ({n} joints)")


if __name__ == "__main__":
    tyro.cli(main)
