"""`body3d fit` and `scripts/fit_smplx.py`: images to bodies."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from body3d.atomic import check_writable
from body3d.commands.shared import BAD_INPUT, DONE, NOBODY, check_device, complain, folder_names
from body3d.errors import InputError, MissingExtra


@dataclass(frozen=True)
class Fit:
    """Fit a whole body to every person of each image and write meshes, parameters, an overlay and a report."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Photos (JPEG, PNG, WebP, TIFF …)."""
    out: Path = Path("results")
    """Folder for the results; photo.jpg goes to OUT/photo/."""
    body: Literal["open", "smpl", "smplh", "smplx"] = "open"
    """The body model; all but the open one need --model-path."""
    model_path: Path | None = None
    """File of the body model (.npz or .pkl) that you registered for."""
    detector: Literal["embedded", "openpose-json", "coco-json"] = "embedded"
    """Where the 2D keypoints come from; the last two read --keypoints."""
    prior: Path | None = None
    """Pose prior in place of the shipped one: a mixture of Gaussians such as SMPLify's gmm_08.pkl."""
    keypoints: Path | None = None
    """OpenPose JSON of the image or COCO JSON (results or annotations); implies the detector by its content."""
    focal: float | None = None
    """Focal length in pixels."""
    fov: float | None = None
    """Field of view in degrees across the longer side."""
    solver: Literal["lbfgs"] = "lbfgs"
    """Solver of the fit."""
    max_people: int | None = None
    """At most so many people, the largest first."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 …"""
    view: bool = False
    """Show the result in an Open3D window (extra `view`)."""


def fit(args: Fit) -> int:
    """Run `Fit`; the exit code."""
    if not args.images:
        raise InputError("no image was given")
    if args.max_people is not None and args.max_people < 1:
        raise InputError(f"--max-people must be at least 1, got {args.max_people}")
    if args.keypoints is not None and len(args.images) > 1 and args.detector == "openpose-json":
        raise InputError("one OpenPose file belongs to one image; give the images one by one")
    if args.detector != "embedded" and args.keypoints is None:
        raise InputError(f"--detector {args.detector} needs --keypoints FILE")
    check_device(args.device)
    check_writable(args.out)
    from body3d.body.priors import MaxMixturePrior
    from body3d.pipeline import load_body

    model = load_body(args.body, args.model_path, args.device)
    prior = MaxMixturePrior.load(args.prior).to(args.device) if args.prior else None
    codes = []
    for image, name in zip(args.images, folder_names(args.images), strict=True):
        try:
            codes.append(_fit_one(args, model, prior, image, args.out / name))
        except (InputError, MissingExtra) as error:
            complain(str(error) if str(image) in str(error) else f"{image}: {error}")
            codes.append(BAD_INPUT)
    return BAD_INPUT if BAD_INPUT in codes else NOBODY if NOBODY in codes else DONE


def _fit_one(args: Fit, model, prior, image: Path, folder: Path) -> int:
    from body3d.pipeline import reconstruct_image, write_results

    detections = None
    if args.keypoints is not None:
        from body3d.detect.files import read_keypoints

        detections = read_keypoints(args.keypoints, image=image)
    done = reconstruct_image(image, model, detections, args.focal, args.fov, args.max_people, args.device, prior)
    if not done.people:
        complain(f"{image}: no person found")
        return NOBODY
    written = write_results(done, folder, " ".join(["fit_smplx.py", *sys.argv[1:]]))
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
