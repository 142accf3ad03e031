"""Measure the embedded detector's errors on annotated photos, for the constants of body3d/lift/noise.py.

    python scripts/fit_detector_noise.py LSPET COCO_PHOTOS coco_wholebody.json --observations seen.npz

The first run looks at the photos (two seconds each) and keeps what it saw; later runs
only fit. Lengths are in units of the person's size: the longer side of the box around the twelve limb joints.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float
from scipy.optimize import brentq
from scipy.special import logit
from scipy.stats import rankdata
from tqdm import tqdm

from body3d.atomic import atomic
from body3d.benchmarks.detector import LSPET12, sample_of_lspet
from body3d.detect.embedded import detect_embedded
from body3d.detect.files import read_keypoints
from body3d.images import read_image
from body3d.lift.noise import LIMBS, MISSING_BELOW, part, person_size, radius
from body3d.skeletons import COCO_WHOLEBODY133, FEET23
from body3d.types import Detections

JOINTS = FEET23
SIGMAS = np.array((COCO_WHOLEBODY133.sigmas or ())[: len(FEET23)])
FLIP = np.array(JOINTS.flip)
TWELVE = JOINTS.indices(LSPET12)
NEAR = 0.1  # sizes: half of a found person's limb joints lie within this of the annotated ones, sides exchanged or not
ANNOTATORS = 3.0  # degrees of freedom: annotators' differences, too, have long tails
SWAPPED = 0.05  # sizes by which the other assignment of sides is nearer, as a mean over a limb's joints


@dataclass(frozen=True)
class Observations:
    """N annotated people and the detection that is theirs (NaN if there is none), pixels."""

    found: Float[np.ndarray, "N 23 2"]
    conf: Float[np.ndarray, "N 23"]
    truth: Float[np.ndarray, "N 23 2"]
    known: Bool[np.ndarray, "N 23"]
    area: Float[np.ndarray, " N"]  # of the person's segment; NaN where it is not annotated (LSPET)

    def __getitem__(self, rows: Bool[np.ndarray, " N"]) -> "Observations":
        return Observations(*(getattr(self, f.name)[rows] for f in fields(self)))

    @property
    def size(self) -> Float[np.ndarray, " N"]:
        return person_size(torch.from_numpy(self.truth), torch.from_numpy(self.known), JOINTS).numpy()


def observe(lspet: Path, coco: Path, annotations: Path, photos: int, seed: int) -> Observations:
    rows = []
    for path, joints in tqdm(sample_of_lspet(lspet, photos, seed), desc="LSPET"):
        truth, known = np.zeros((23, 2)), np.zeros(23, bool)
        truth[TWELVE], known[TWELVE] = joints[:, :2], joints[:, 2] > 0
        rows.append((*matched(detect_embedded(read_image(path)), truth, known), truth, known, np.nan))
    everybody = json.loads(annotations.read_text())["annotations"]
    for photo in tqdm(sorted(coco.glob("*.jpg")), desc="COCO"):
        people = read_keypoints(annotations, photo)
        areas = [a["area"] for a in everybody if a["image_id"] == int(photo.stem) and a["num_keypoints"]]
        found = detect_embedded(read_image(photo))
        for xy, conf, area in zip(people.keypoints.xy, people.keypoints.conf, areas, strict=True):
            truth, known = xy[:23].double().numpy(), conf[:23].numpy() > 0
            rows.append((*matched(found, truth, known), truth, known, area))
    return Observations(*(np.stack(column) for column in zip(*rows, strict=True)))


def matched(
    found: Detections, truth: Float[np.ndarray, "23 2"], known: Bool[np.ndarray, "23"]
) -> tuple[Float[np.ndarray, "23 2"], Float[np.ndarray, "23"]]:
    """Keypoints and confidences of the found person of whom most limb joints are near; NaN if fewer than half are."""
    limbs = [j for j in TWELVE if known[j]]
    nobody = np.full((23, 2), np.nan), np.full(23, np.nan)
    if not len(found) or len(limbs) < 6:
        return nobody
    size = np.ptp(truth[limbs], 0).max()
    xy, conf = found.keypoints.xy[:, :23].double().numpy(), found.keypoints.conf[:, :23].double().numpy()
    distance = [np.linalg.norm(xy[:, limbs] - truth[side[limbs]], axis=-1) for side in (np.arange(23), FLIP)]
    near = (np.minimum(*distance) < NEAR * size).mean(1)
    best = near.argmax()
    return (xy[best], conf[best]) if near[best] >= 0.5 else nobody


def swapped(seen: Observations, group: str) -> tuple[Bool[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Whose legs, or arms, have left and right exchanged; and of whom it can be told: two pairs of joints annotated."""
    rows = np.array([j for j in TWELVE if part(JOINTS.names[j]) in LIMBS[group]])
    both = seen.known[:, rows] & seen.known[:, FLIP[rows]]
    own, other = (np.linalg.norm(seen.found[:, rows] - seen.truth[:, r], axis=-1) for r in (rows, FLIP[rows]))
    count = both.sum(1)
    gain = ((own - other) * both).sum(1) / np.maximum(count, 1)
    return (gain > SWAPPED * seen.size) & (count >= 4), count >= 4


def without(measured: float, annotators: float, q: float) -> float:
    """A quantile of the error's length less the annotators' part, in quadrature; at least half of it.

    `annotators` is a root mean square (COCO's sigma). For Student's t in 2D the mean square is 2 f / (f - 2) and the squared median
    f (2^(2/f) - 1).
    """
    median = annotators * np.sqrt((2 ** (2 / ANNOTATORS) - 1) * (ANNOTATORS - 2) / 2)
    theirs = median * float(radius(torch.tensor(1 - q), ANNOTATORS))
    return np.sqrt(max(measured**2 - theirs**2, measured**2 / 4))


def fit(every: Observations) -> None:
    """Print the constants."""
    is_found = ~np.isnan(every.conf[:, 0])
    seen = every[is_found]
    lspet = np.isnan(seen.area)
    (arms, arms_told), (legs, legs_told) = swapped(seen, "arms"), swapped(seen, "legs")
    told = arms_told & legs_told & lspet
    of = lambda where: f"{(where & is_found).sum()} of {where.sum()}"
    print(f"found: {of(np.isnan(every.area))} in LSPET, {of(~np.isnan(every.area))} in COCO")
    for name, swap in (("all", arms & legs), ("legs", legs & ~arms), ("arms", arms & ~legs)):
        print(
            f"swapped, {name}: {(swap & told).sum()} of {told.sum()}; half of it: {(swap & told).sum() / told.sum() / 2:.3f}"
        )

    truth = seen.truth.copy()
    for group, swap in (("arms", arms), ("legs", legs)):
        rows = np.array([j for j, name in enumerate(JOINTS.names) if part(name) in LIMBS[group]])
        truth[np.ix_(swap, rows)] = seen.truth[np.ix_(swap, FLIP[rows])]
    error = (seen.found - truth) / seen.size[:, None, None]

    # The body's axes in the image: where the definitions of a joint differ, they differ along them.
    middle = lambda name: truth[:, JOINTS.indices((f"left_{name}", f"right_{name}"))].mean(1)
    torso = seen.known[:, JOINTS.indices(("left_shoulder", "right_shoulder", "left_hip", "right_hip"))].all(1)
    up = middle("shoulder") - middle("hip")
    up = up / np.linalg.norm(up, axis=-1, keepdims=True).clip(1e-9)
    across = np.stack([-up[:, 1], up[:, 0]], -1)
    shoulders = truth[:, JOINTS.index("left_shoulder")] - truth[:, JOINTS.index("right_shoulder")]
    across *= np.sign((shoulders * across).sum(-1, keepdims=True))  # to the person's left

    whole = ~np.isnan(every.area) & every.known[:, TWELVE].all(1)
    width = np.median(np.sqrt(every.area[whole]) / every.size[whole])  # of a person's segment, in sizes
    print(f"root of a person's area: {width:.2f} sizes, of {whole.sum()} people")
    tails = []
    for name in dict.fromkeys(map(part, JOINTS.names)):
        columns = [j for j in range(23) if part(JOINTS.names[j]) == name]
        source = lspet if any(j in TWELVE for j in columns) else ~lspet
        offsets, confs = [], []
        for j in columns:
            rows = source & torso & seen.known[:, j]
            outward = -across[rows] if JOINTS.names[j].startswith("right_") else across[rows]
            offsets.append(np.stack([(error[rows, j] * up[rows]).sum(-1), (error[rows, j] * outward).sum(-1)], -1))
            confs.append(seen.conf[rows, j])
        offset, conf = np.concatenate(offsets), np.concatenate(confs)
        missing = float((conf < MISSING_BELOW).mean())
        if missing == 1:
            continue
        bias = np.median(offset, 0)
        length = np.linalg.norm(offset - bias, axis=-1)
        annotators = SIGMAS[columns[0]] * width
        median, tail = (without(np.quantile(length, q), annotators, q) for q in (0.5, 0.9))
        if source is lspet:
            tails.append(tail / median)
        present = conf >= MISSING_BELOW
        stretch = np.log((length[present] / np.median(length)).clip(0.05))
        answer = logit(conf[present].clip(MISSING_BELOW, 0.9995))
        slope, intercept = np.polyfit(stretch, answer, 1)
        spread = np.std(answer - slope * stretch - intercept)
        numbers = f"{median:.3f}, {missing:.3f}, {intercept:.1f}, {max(-slope, 0):.2f}, {spread:.1f}"
        raw = f"{len(length)} joints; raw median {np.median(length):.3f}, 90 % {np.quantile(length, 0.9):.3f}"
        print(f'    "{name}": PartNoise({numbers}),  # {raw}; {bias[0]:+.3f} up, {bias[1]:+.3f} outwards')

    ratio = np.median(tails)
    freedom = brentq(lambda f: float(radius(torch.tensor(0.1), f)) - ratio, 0.5, 50)
    print(f"90 % over median: {ratio:.2f}, as Student's t with {freedom:.1f} degrees of freedom")
    ranks = np.full((len(error), 12), np.nan)
    for column, j in enumerate(TWELVE):
        rows = lspet & seen.known[:, j]
        ranks[rows, column] = rankdata(np.linalg.norm(error[rows, j], axis=-1)) / (rows.sum() + 1)
    pairs = [(a, b) for b in range(12) for a in range(b)]
    both = [~np.isnan(ranks[:, a] + ranks[:, b]) for a, b in pairs]
    correlation = np.mean([np.corrcoef(ranks[m, a], ranks[m, b])[0, 1] for (a, b), m in zip(pairs, both, strict=True)])
    print(f"rank correlation of two joints' errors: {correlation:.2f}")


def main(
    lspet: tyro.conf.Positional[Path],
    coco: tyro.conf.Positional[Path],
    annotations: tyro.conf.Positional[Path],
    observations: Path,
    photos: int = 220,
    seed: int = 1,
) -> None:
    """Print the constants of body3d/lift/noise.py.

    Args:
        lspet: folder of LSPET.
        coco: folder of COCO's photos.
        annotations: COCO-WholeBody's file about them.
        observations: npz of what the detector saw: read if it is there, else made.
        photos: how many photos of LSPET to look at.
        seed: which.
    """
    if not observations.is_file():
        seen = observe(lspet, coco, annotations, photos, seed)
        with atomic(observations) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **{f.name: getattr(seen, f.name) for f in fields(seen)})
    with np.load(observations) as file:
        fit(Observations(*(file[f.name] for f in fields(Observations))))


if __name__ == "__main__":
    tyro.cli(main)
