"""Real photos: how many people are found, how far the fitted bodies lie from their keypoints, and what each step costs.

A keypoint error says nothing about depth: `views.py` measures that.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from body3d.errors import InputError
from body3d.pipeline import fit_seen, load_bodies, see
from body3d.types import FitResult

PHOTOS = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Photo:
    people: int
    relative_error: tuple[float, ...]  # median keypoint distance of each person over their torso length
    detect: float  # seconds
    fit: float


def torso_px(person: FitResult) -> float:
    """Length in pixels of the fitted body's torso if it were seen from the front: neck to pelvis at the person's depth."""
    points = dict(zip(person.body.joints.joints.names, person.body.joints.xyz, strict=True))
    metres = (points["neck"] - points["pelvis"]).norm().item()
    return person.camera.K[0, 0].item() * metres / max(points["pelvis"][2].item(), 0.1)


def measure(paths: Iterable[Path], max_people: int | None = None) -> list[Photo]:
    """Each photo through the whole pipeline; one that cannot be read ends the run with its error."""
    models = load_bodies()
    out = []
    for path in tqdm(list(paths), desc="photos", file=sys.stderr):
        done = fit_seen([see(path, max_people=max_people)], models)[0]
        errors = tuple(p.reprojection_px / torso_px(p) for p in done.people)
        out.append(Photo(len(done.people), errors, done.seconds["detect"], done.seconds["fit"]))
    return out


def summary(photos: list[Photo]) -> dict[str, float]:
    errors = np.array([e for p in photos for e in p.relative_error])
    errors = errors[np.isfinite(errors)]
    people = max(sum(p.people for p in photos), 1)
    return {
        "photos": len(photos),
        "photos with somebody found": sum(p.people > 0 for p in photos),
        "people": people,
        "reprojection / torso, median": float(np.median(errors)) if len(errors) else float("nan"),
        "reprojection / torso, 90th percentile": float(np.percentile(errors, 90)) if len(errors) else float("nan"),
        "detect s / photo": sum(p.detect for p in photos) / len(photos),
        "fit s / person": sum(p.fit for p in photos) / people,
    }


def photos_in(folder: Path, every: int = 1) -> list[Path]:
    """The photos of a folder, every n-th, sorted. Raises InputError if there are none."""
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in PHOTOS) if folder.is_dir() else []
    if not found:
        raise InputError(f"{folder} holds no photos ({', '.join(PHOTOS)})")
    return found[::every]


def one_person(photo: Path) -> dict[str, float]:
    """Seconds per step and peak memory (MB) of the whole command in a fresh process, models already in the cache."""
    code = (
        "import time; began = time.perf_counter()\n"
        "from body3d.pipeline import fit_seen, load_bodies, see\nfrom body3d.results import write_results\n"
        "import resource, sys, tempfile, pathlib, json\n"
        "imported = time.perf_counter()\n"
        "done = fit_seen([see(sys.argv[1], max_people=1)], load_bodies())[0]\n"
        "with tempfile.TemporaryDirectory() as out: report = write_results(done, pathlib.Path(out) / 'photo')\n"
        "print(json.dumps({'import': imported - began, **report['seconds'], 'all': time.perf_counter() - began,"
        " 'peak MB': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(photo)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
