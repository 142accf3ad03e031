"""From images to fitted people: what is seen in each photo, then one fit for the people of many."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from body3d.body.definitions import MEDIAPIPE_ON_BODY, Mixture
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior
from body3d.camera import Camera
from body3d.errors import InputError
from body3d.fit.checks import cleaned, focal_warning
from body3d.fit.inside import inspected
from body3d.fit.photos import COMMON, FOCALS, focal_costs, in_photo, to_common
from body3d.fit.smplifyx import Given3D, Options, fit_keypoints
from body3d.types import Detections, FitResult, Keypoints2D

__all__ = [
    "How",
    "Reconstruction",
    "Seen",
    "choose_camera",
    "fit_seen",
    "largest_first",
    "load_bodies",
    "reconstruct",
    "see",
]

BODY_KINDS = ("open", "smpl", "smplh", "smplx")
GENDERS = ("neutral", "male", "female")
Method = Literal["body3d", "smplify", "smplifyx"]


@dataclass(frozen=True)
class How:
    """How people are fitted, the same for all images of a run."""

    method: Method = "body3d"
    prior: MaxMixturePrior | None = None  # in place of the shipped pose prior
    options: Options = field(default_factory=Options)
    lifter: bool = True  # the shipped lifter's 3D joints are a term of the fit, and a start
    height: float | None = None  # metres, of everybody
    collisions: bool = True  # a body that passes through itself is moved apart
    search_focal: bool = False  # of a photo whose focal length is a guess


@dataclass(frozen=True)
class Seen:
    """A photo, its camera and the people that were detected in it."""

    image: np.ndarray  # (H, W, 3) uint8, upright
    source: Path | None
    camera: Camera
    focal_source: str
    detections: Detections
    on_body: dict[str, Mixture]  # where the detector's points lie on the body
    seconds: float
    given: tuple[Given3D, ...] = ()  # other 3D poses of the people detected: terms of the fit, and starts
    notes: tuple[tuple[str, ...], ...] = ()  # of each person: what of the keypoints was left out, in words


@dataclass(frozen=True)
class Reconstruction:
    """Everything that came out of one image."""

    image: np.ndarray  # (H, W, 3) uint8, upright
    source: Path | None  # the photo's file
    people: list[FitResult]  # largest person first
    models: list[BodyModel]  # of each person
    seconds: dict[str, float]  # detect, lift, fit
    focal_source: str
    how: How
    genders: list[dict[str, float]] = field(
        default_factory=list
    )  # of each person, the cost with each gender that was tried


# ---- bodies --------------------------------------------------------------------------------------------------------
def load_bodies(
    kind: str = "open", path: Path | None = None, gender: str = "neutral", device: str = "cpu"
) -> dict[str, BodyModel]:
    """The body models to fit, by gender: the embedded open body, or files of the user's own.

    `path` is a file, or a folder of published files such as SMPLX_NEUTRAL.npz; `gender` "auto" takes all genders that it holds.
    """
    if kind not in BODY_KINDS:
        raise InputError(f"unknown body {kind!r}; there are {', '.join(BODY_KINDS)}")
    if kind == "open" and path is None:
        if gender != "neutral":
            raise InputError(
                f"--gender {gender}: the open body has one shape space for everybody; genders are for --body smpl, smplh, smplx"
            )
        return {"neutral": BodyModel.open().to(device)}
    if path is None:
        raise InputError(f"--body {kind} needs --model-path FILE: the {kind.upper()} file that you registered for")
    load = lambda file: BodyModel.load(file, None if kind == "open" else kind).to(device)
    if not path.is_dir():
        if gender == "auto":
            raise InputError(
                f"--gender auto needs a folder as --model-path, with a file for each gender; {path} is one file"
            )
        return {gender: load(path)}
    found = {g: files for g in GENDERS if (files := _model_files(path, kind, g))}
    wanted = list(found) if gender == "auto" else [gender]
    if not found or any(g not in found for g in wanted):
        there = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise InputError(
            f"{path} holds no {kind.upper()} file of gender {gender} (such as {kind.upper()}_NEUTRAL.npz); it holds {there}"
        )
    return {g: load(found[g][0]) for g in wanted}


def _model_files(folder: Path, kind: str, gender: str) -> list[Path]:
    """Published names: SMPLX_MALE.npz, SMPLH_male.pkl, female/model.npz, basicModel_f_lbs_10_207_0_v1.0.0.pkl,
    basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl."""
    basic = (f"basicmodel_{gender[0]}_", f"basicmodel_{gender}_")
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".npz", ".pkl") and p.is_file()]
    words = lambda p: str(p.relative_to(folder)).lower().replace("female", "fem@le")
    wanted = gender.replace("female", "fem@le")
    named = [p for p in files if wanted in words(p) and (kind + "_" in p.name.lower() or p.name.startswith("model."))]
    return named or [p for p in files if kind == "smpl" and p.name.lower().startswith(basic)]


# ---- seeing --------------------------------------------------------------------------------------------------------
def choose_camera(
    size: tuple[int, int], focal: float | None, fov: float | None, exif_focal: float | None
) -> tuple[Camera, str]:
    """The camera of a photo and, in words, where its focal length comes from."""
    if focal is not None and fov is not None:
        raise InputError("--focal and --fov say the same thing twice; give one of them")
    if focal is not None:
        source = f"given: {focal:g} px"
    elif fov is not None:
        source = f"given: field of view {fov:g}°"
    elif exif_focal is not None:
        focal, source = exif_focal, f"EXIF: {exif_focal:.0f} px"
    else:
        source = "guess: 1.2 × the longer side"
    try:
        return Camera.guess(size, focal, fov), source
    except ValueError as error:
        raise InputError(str(error)) from None


def see(
    image: str | Path | np.ndarray,
    detections: Detections | None = None,
    focal: float | None = None,
    fov: float | None = None,
    max_people: int | None = None,
    device: str = "cpu",
) -> Seen:
    """Read an image, choose its camera and find its people, largest first. `detections` replaces the embedded detector.

    Raises InputError for an image that cannot be read.
    """
    from body3d.images import exif_focal_px, read_image

    exif = path = None
    if not isinstance(image, np.ndarray):
        path = Path(image)
        image = read_image(path)
        exif = exif_focal_px(path, image.shape[:2])
    camera, source = choose_camera(image.shape[:2], focal, fov, exif)
    began = time.perf_counter()
    on_body: dict[str, Mixture] = {}
    if detections is None:
        from body3d.detect.embedded import detect_embedded

        detections, on_body = detect_embedded(image, max_people), MEDIAPIPE_ON_BODY
    found = largest_first(detections, max_people).to(device)
    return Seen(image, path, camera.to(device), source, found, on_body, time.perf_counter() - began)


def largest_first(detections: Detections, max_people: int | None = None) -> Detections:
    """Sorted by the area of the box; the `max_people` largest."""
    size = (detections.boxes.xyxy[:, 2:] - detections.boxes.xyxy[:, :2]).clamp_min(0)
    order = size.prod(-1).argsort(descending=True, stable=True)
    return detections[order[:max_people]]


# ---- fitting -------------------------------------------------------------------------------------------------------
def reconstruct(
    image: str | Path | np.ndarray,
    body: BodyModel | None = None,
    detections: Detections | None = None,
    focal: float | None = None,
    fov: float | None = None,
    max_people: int | None = None,
    device: str = "cpu",
    how: How = How(),
) -> list[FitResult]:
    """The people of an image, largest first, each a posed body in camera space (an empty list if nobody is found).

    `image` is a path or an RGB array (H, W, 3) uint8; `detections` replaces the embedded detector, `body` the open body. Raises
    InputError for an image that cannot be read.
    """
    seen = see(image, detections, focal, fov, max_people, device)
    models = load_bodies(device=device) if body is None else {"neutral": body.to(device)}
    return fit_seen([seen], models, how)[0].people


def fit_seen(photos: Sequence[Seen], models: dict[str, BodyModel], how: How = How()) -> list[Reconstruction]:
    """One fit for the people of all photos, whatever their cameras. With several models each person gets the best one's body."""
    found = [_cleaned(p, next(iter(models.values()))) for p in photos]
    if how.search_focal:
        found = [_searched(p, models, how) for p in found]
    out: list[Reconstruction | None] = [None] * len(found)
    # Photos whose detections speak of other joints, or that have a detector's 3D where others have not, are fitted apart.
    kinds: dict[tuple, list[int]] = {}
    for i, photo in enumerate(found):
        d = photo.detections
        given = tuple(source.name for source in photo.given)
        kinds.setdefault((d.keypoints.joints.name, d.world is None, not photo.on_body, given), []).append(i)
    for indices in kinds.values():
        for i, done in zip(indices, _fit_alike([found[i] for i in indices], models, how), strict=True):
            out[i] = done
    return [done for done in out if done is not None]


def _fit_alike(photos: Sequence[Seen], models: dict[str, BodyModel], how: How) -> list[Reconstruction]:
    counts = [len(p.detections) for p in photos]
    if not sum(counts):
        return [_nobody(p, how) for p in photos]
    # People are seen by the same camera, whatever the photo's: rays are what counts.
    keypoints = _cat([to_common(p.detections.keypoints, p.camera) for p in photos])
    worlds = [p.detections.world for p in photos]
    world = (
        None
        if worlds[0] is None
        else replace(
            worlds[0], xyz=torch.cat([w.xyz for w in worlds if w]), conf=torch.cat([w.conf for w in worlds if w])
        )
    )
    began = time.perf_counter()
    given = _lifted(keypoints) if how.lifter and how.method == "body3d" else []
    given += [_cat_given(same) for same in zip(*(p.given for p in photos), strict=True)]
    lifted = time.perf_counter()
    tried = {g: _method(model, keypoints, photos, world, given, how) for g, model in models.items()}
    costs = {g: [sum(r.terms.values()) for r in results] for g, results in tried.items()}
    best = [min(models, key=lambda g: costs[g][n]) for n in range(sum(counts))]
    owners = [(photo, n) for photo, count in zip(photos, counts, strict=True) for n in range(count)]
    everybody = [
        inspected(_said_in(photo, n, tried[g][k]), models[g], how.collisions, photo.on_body)
        for k, (g, (photo, n)) in enumerate(zip(best, owners, strict=True))
    ]
    seconds = time.perf_counter() - lifted
    out, first = [], 0
    for photo, count in zip(photos, counts, strict=True):
        if not count:
            out.append(_nobody(photo, how))
            continue
        some = slice(first, first + count)
        share = count / sum(counts)
        times = {"detect": photo.seconds, "lift": (lifted - began) * share, "fit": seconds * share}
        genders = [{g: costs[g][n] for g in models} for n in range(first, first + count)]
        bodies = [models[g] for g in best[some]]
        out.append(
            Reconstruction(photo.image, photo.source, everybody[some], bodies, times, photo.focal_source, how, genders)
        )
        first += count
    return out


def _cleaned(photo: Seen, model: BodyModel) -> Seen:
    """Keypoints that cannot be meant are left out by the photo's own size, which the common camera does not know."""
    keypoints, notes = cleaned(photo.detections.keypoints, photo.camera, model)
    return replace(
        photo, detections=replace(photo.detections, keypoints=keypoints), notes=tuple(tuple(said) for said in notes)
    )


def _said_in(photo: Seen, n: int, result: FitResult) -> FitResult:
    """The fit of the photo's n-th person in the photo's pixels, with what is to be said of the photo and its keypoints."""
    focal = focal_warning(photo.camera)
    warnings = (*([] if focal is None else [focal]), *photo.notes[n])
    return in_photo(result, photo.camera, photo.detections.keypoints[n], warnings)


def _method(
    model, keypoints: Keypoints2D, photos: Sequence[Seen], world, given: Sequence[Given3D], how: How
) -> list[FitResult]:
    on_body = photos[0].on_body
    if how.method == "body3d":
        return fit_keypoints(model, keypoints, COMMON, world, how.prior, how.options, on_body, given, how.height)
    from body3d.fit.starts import FACING

    # The published methods count pixels: each photo's own.
    if how.method == "smplify":
        from body3d.fit.smplify import smplify, sphere_penetration

        penetration = sphere_penetration(model) if how.collisions else None
        run = lambda k, c, o: smplify(model, k, c, how.prior, penetration, on_body=on_body, orient=o)
    else:
        from body3d.fit.published import mixture_pose
        from body3d.fit.smplifyx_published import cone_penetration, smplifyx

        pose = mixture_pose(model, how.prior or MaxMixturePrior.shipped())
        penetration = cone_penetration(model) if how.collisions else None
        run = lambda k, c, o: smplifyx(model, k, c, pose, penetration, on_body=on_body, orient=o)
    upright = torch.tensor([FACING]).to(keypoints.xy)
    return [
        result
        for p in photos
        if len(p.detections)
        for result in run(p.detections.keypoints, p.camera, upright.expand(len(p.detections), -1))
    ]


def _lifted(keypoints: Keypoints2D) -> list[Given3D]:
    """The shipped lifter's 3D of everybody, with its deviations."""
    from body3d.lift.embedded import embedded_lifter, lift

    lifted = lift(embedded_lifter().to(keypoints.xy.device), keypoints, COMMON.to(keypoints.xy.device))
    return [Given3D(lifted.body, lifted.sigma, "lifter")]


def _cat(parts: Sequence[Keypoints2D]) -> Keypoints2D:
    return Keypoints2D(torch.cat([p.xy for p in parts]), torch.cat([p.conf for p in parts]), parts[0].joints)


def _cat_given(parts: Sequence[Given3D]) -> Given3D:
    """One source's poses of the people of all photos."""
    first = parts[0]
    xyz, conf = (torch.cat([getattr(p.keypoints, name) for p in parts]) for name in ("xyz", "conf"))
    sigma = None if first.sigma is None else torch.cat([p.sigma for p in parts if p.sigma is not None])
    return replace(first, keypoints=replace(first.keypoints, xyz=xyz, conf=conf), sigma=sigma)


def _nobody(photo: Seen, how: How) -> Reconstruction:
    return Reconstruction(
        photo.image, photo.source, [], [], {"detect": photo.seconds, "lift": 0.0, "fit": 0.0}, photo.focal_source, how
    )


def _searched(photo: Seen, models: dict[str, BodyModel], how: How) -> Seen:
    """The photo with the focal length of least cost, where it is a guess and more than one person is there to tell."""
    if not photo.focal_source.startswith("guess"):
        return photo
    if len(photo.detections) < 2:
        return replace(photo, focal_source=f"{photo.focal_source} (a search needs several people)")
    focals = [ratio * max(photo.camera.size) for ratio in FOCALS]
    keypoints = photo.detections.keypoints
    model = next(iter(models.values()))
    costs = focal_costs(model, keypoints, photo.camera, focals, how.options, how.prior, photo.on_body, how.height)
    best = int(costs.argmin())
    spread = (costs.max() / costs.min() - 1).item()
    camera = Camera.guess(photo.camera.size, focals[best]).to(photo.camera.K.device)
    source = f"search: {focals[best]:.0f} px of {len(focals)} tried, which differ by {spread:.0%} in cost"
    return replace(photo, camera=camera, focal_source=source)
