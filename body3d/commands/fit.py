"""`body3d fit` and `scripts/fit_smplx.py`: images to bodies."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from body3d.atomic import check_writable
from body3d.commands.shared import DONE, NOBODY, check_device, check_max_people, complain, folder_names, said, worst
from body3d.errors import InputError, MissingExtra

PHOTOS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


@dataclass(frozen=True)
class Fit:
    """Fit a whole body to every person of each image and write meshes, parameters, an overlay and a report."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Photos (JPEG, PNG, WebP, TIFF …), or folders of them."""
    out: Path = Path("results")
    """Folder for the results; photo.jpg goes to OUT/photo/."""
    body: Literal["open", "smpl", "smplh", "smplx"] = "open"
    """The body model; all but the open one need --model-path."""
    model_path: Path | None = None
    """File of the body model (.npz or .pkl) that you registered for, or the folder with the files of all genders."""
    gender: Literal["neutral", "male", "female", "auto"] = "neutral"
    """Which file of the folder; auto fits all that are there and keeps the best for each person."""
    method: Literal["body3d", "smplify", "smplifyx"] = "body3d"
    """body3d: fast, many starts, with 3D terms. smplify, smplifyx: as published, for comparison (tens of seconds per person
    with --no-collisions)."""
    prior: Path | None = None
    """Pose prior in place of the shipped one: a mixture of Gaussians such as SMPLify's gmm_08.pkl."""
    keypoints: Path | None = None
    """OpenPose JSON of the image or COCO JSON (results or annotations), in place of the embedded detector."""
    lifter: bool = True
    """Use the shipped lifter's 3D joints as a term and a start of the fit."""
    net: Literal["vnect", "volumetric", "mppe", "dconvmp"] | None = None
    """Use what this network regresses from the photo as a term and a start too (`body3d regress`); needs --net-weights."""
    net_weights: Path | None = None
    """best.pt of a training, or a published checkpoint of the network."""
    collisions: bool = True
    """Move apart what of a body is inside itself."""
    height: float | None = None
    """Everybody's height in metres, if known."""
    focal: float | None = None
    """Focal length in pixels."""
    fov: float | None = None
    """Field of view in degrees across the longer side."""
    search_focal: bool = False
    """Try several focal lengths where nothing tells it; for photos of several people."""
    solver: Literal["lm", "lbfgs"] = "lm"
    """Solver of the fit; lbfgs is the slow reference."""
    max_people: int | None = None
    """At most so many people, the largest first."""
    at_once: int = 8
    """So many images are fitted together."""
    resume: bool = False
    """Leave out images whose results are there already."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 …"""
    view: bool = False
    """Show the result in an Open3D window (extra `view`)."""


def fit(args: Fit) -> int:
    """Run `Fit`; the exit code."""
    images = tuple(_images(args.images))
    _check(args, images)
    from body3d.body.priors import MaxMixturePrior
    from body3d.fit.checks import check_height
    from body3d.fit.smplifyx import Options
    from body3d.pipeline import How, load_bodies

    check_height(args.height)
    models = load_bodies(args.body, args.model_path, args.gender, args.device)
    prior = MaxMixturePrior.load(args.prior).to(args.device) if args.prior else None
    how = How(
        args.method, prior, Options(solver=args.solver), args.lifter, args.height, args.collisions, args.search_focal
    )
    todo = list(zip(images, (args.out / name for name in folder_names(images)), strict=True))
    if args.resume:
        todo = [(image, folder) for image, folder in todo if not _is_done(image, folder)]
        print(f"{len(images) - len(todo)} of {len(images)} images are done already")
    codes = []
    net = _regressor(args)
    for first in range(0, len(todo), args.at_once):
        codes += _fit_some(args, models, how, net, todo[first : first + args.at_once], first, len(todo))
    return worst(codes)


def _images(given: tuple[Path, ...]) -> Iterator[Path]:
    for path in given:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in PHOTOS)
            if not found:
                raise InputError(f"{path} is a folder without photos ({', '.join(sorted(PHOTOS))})")
            yield from found
        else:
            yield path


def _check(args: Fit, images: tuple[Path, ...]) -> None:
    if not images:
        raise InputError("no image was given")
    check_max_people(args.max_people)
    if args.at_once < 1:
        raise InputError(f"--at-once must be at least 1, got {args.at_once}")
    if args.keypoints is not None and len(images) > 1 and _is_openpose(args.keypoints):
        raise InputError("one OpenPose file belongs to one image; give the images one by one")
    if (args.net is None) != (args.net_weights is None):
        raise InputError("--net and --net-weights FILE belong together: one of them is missing")
    given = {"--net": args.net is not None, "--height": args.height is not None, "--solver": args.solver != "lm"}
    for option in given:
        if given[option] and args.method != "body3d":
            raise InputError(f"{option} is for --method body3d; {args.method} is as published")
    check_device(args.device)
    check_writable(args.out)


def _is_openpose(path: Path) -> bool:
    """Whether the file is OpenPose's, which does not say what image it is of; what cannot be read is said photo by photo."""
    from body3d.detect.files import read_keypoints
    from body3d.skeletons import OPENPOSE137

    try:
        return read_keypoints(path).keypoints.joints is OPENPOSE137
    except InputError:
        return False


def _is_done(image: Path, folder: Path) -> bool:
    """Whether the folder holds the results of this very image: a report is written last."""
    try:
        return json.loads((folder / "report.json").read_text())["image"] == str(image.resolve())
    except (OSError, ValueError, KeyError):
        return False


def _fit_some(args: Fit, models: dict, how, net, todo: list[tuple[Path, Path]], first: int, of: int) -> list[int]:
    """Detect in each image, fit all people together, write each image's results; an exit code for each image."""
    from tqdm import tqdm

    from body3d.pipeline import fit_seen, see

    codes, seen = [], []
    bar = tqdm(todo, desc="looking", initial=first, total=of, leave=False, disable=True if of == 1 else None)
    for image, folder in bar:
        try:
            detections = None
            if args.keypoints is not None:
                from body3d.detect.files import read_keypoints

                detections = read_keypoints(args.keypoints, image=image)
            photo = see(image, detections, args.focal, args.fov, args.max_people, args.device)
            if net is not None and len(photo.detections):
                photo = _with_regressed(args, photo, net)
        except (InputError, MissingExtra) as error:
            codes.append(said(image, error))
            continue
        if len(photo.detections):
            seen.append((image, folder, photo))
        else:
            complain(f"{image}: no person found")
            codes.append(NOBODY)
    try:
        done = fit_seen([photo for _, _, photo in seen], models, how)
        codes += [_write(args, one, image, folder) for one, (image, folder, _) in zip(done, seen, strict=True)]
    except (InputError, MissingExtra) as error:
        if len(seen) < 2:
            return [*codes, *(said(image, error) for image, _, _ in seen)]
        # One photo spoils the batch: each by itself, so that the others are done.
        for image, folder, photo in seen:
            try:
                codes.append(_write(args, fit_seen([photo], models, how)[0], image, folder))
            except (InputError, MissingExtra) as one:
                codes.append(said(image, one))
    return codes


def _regressor(args: Fit):
    if args.net is None:
        return None
    from body3d.nets3d.inference import read_regressor

    assert args.net_weights is not None  # checked at the beginning
    return read_regressor(args.net_weights, args.net).to(args.device)


def _with_regressed(args: Fit, photo, net):
    """The photo with the poses that the network regresses from the boxes of its people."""
    from dataclasses import replace

    from body3d.fit.given import Given3D
    from body3d.nets3d.inference import regress_photo

    people = regress_photo(net, photo.image, photo.camera, photo.detections.boxes.to("cpu"))
    return replace(photo, given=(Given3D(people.keypoints3d.to(args.device), None, f"{args.net}'s 3D"),))


def _write(args: Fit, done, image: Path, folder: Path) -> int:
    from body3d.results import write_results

    written = write_results(done, folder, " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    seconds = written["seconds"]
    print(
        f"{image}: {len(done.people)} {'person' if len(done.people) == 1 else 'people'} in {folder}/ "
        f"(detect {seconds['detect']:.1f} s, fit {seconds['fit']:.1f} s, write {seconds['write']:.1f} s; "
        f"focal length {written['focal_source']})"
    )
    for n, person in enumerate(done.people):
        notes = "".join(f"; {warning}" for warning in person.warnings)
        print(f"  person_{n}: {person.reprojection_px:.1f} px from its keypoints{notes}")
    if args.view:
        from body3d.view.scene import show

        show([p.body.mesh for p in done.people], done.people[0].camera, done.image, folder)
    return DONE
