"""The command line: `body3d fit|view|weights|bench …`. Each command is a typed function that a script or a program may call too.

Exit codes: 0 all done; 2 bad usage or unreadable input (one line on stderr each, the other inputs are still done); 3 nobody found.
"""

import contextlib
import io
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from body3d.atomic import check_writable
from body3d.errors import InputError, MissingExtra

DONE, BAD_INPUT, NOBODY = 0, 2, 3


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
    _check_device(args.device)
    check_writable(args.out)
    from body3d.body.priors import MaxMixturePrior
    from body3d.pipeline import load_body

    model = load_body(args.body, args.model_path, args.device)
    prior = MaxMixturePrior.load(args.prior).to(args.device) if args.prior else None
    codes = []
    for image, name in zip(args.images, _names(args.images), strict=True):
        try:
            codes.append(_fit_one(args, model, prior, image, args.out / name))
        except (InputError, MissingExtra) as error:
            _complain(str(error) if str(image) in str(error) else f"{image}: {error}")
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
        _complain(f"{image}: no person found")
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


def _names(images: tuple[Path, ...]) -> list[str]:
    """A folder name for each image: its stem, numbered where two images share one."""
    names: list[str] = []
    for image in images:
        name, k = image.stem, 2
        while name in names:
            name, k = f"{image.stem}_{k}", k + 1
        names.append(name)
    return names


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {device} cannot be used here: {reason}") from None


@dataclass(frozen=True)
class View:
    """Show a results folder in an Open3D window; without a display write views from four sides instead."""

    folder: tyro.conf.Positional[Path]
    """A folder that `fit` wrote, e.g. results/photo."""
    png: bool = False
    """Write the PNGs and open no window."""


def view(args: View) -> int:
    """Run `View`; the exit code."""
    from body3d.view.scene import view_results

    view_results(args.folder, png=args.png)
    return DONE


@dataclass(frozen=True)
class Weights:
    """Bring a detector's weights into the cache folder (BODY3D_CACHE), once."""

    action: tyro.conf.Positional[Literal["get"]]
    name: tyro.conf.Positional[Literal["embedded"]]
    wheel: Path | None = None
    """The wheel of mediapipe 0.10.21 at hand, instead of a download."""


def weights(args: Weights) -> int:
    """Run `Weights`; the exit code."""
    from body3d.weights import get_embedded

    print(f"the embedded detector's models are in {get_embedded(args.wheel)}")
    return DONE


@dataclass(frozen=True)
class Bench:
    """Print figures of docs/benchmarks.md."""

    what: tyro.conf.Positional[Literal["views", "photos", "one"]]
    """views: synthetic views of held-out motion capture; photos: a folder of photos; one: time and memory of one photo."""
    path: tyro.conf.Positional[Path]
    """views: the file of scripts/retarget_mocap.py; photos: a folder; one: a photo."""
    count: int = 40
    """views: how many."""
    seed: int = 0
    """views: which ones."""
    every: int = 1
    """photos: take every n-th."""


def bench(args: Bench) -> int:
    """Run `Bench`; the exit code."""
    if args.what == "views":
        from body3d.benchmarks.views import run as run_views

        table = run_views(args.path, args.count, args.seed)
    else:
        from body3d.benchmarks.photos import measure, one_person, photos_in, summary

        table = {
            str(args.path): one_person(args.path)
            if args.what == "one"
            else summary(measure(photos_in(args.path, args.every)))
        }
    for row, figures in table.items():
        print(row)
        for name, value in figures.items():
            print(f"  {name:<40} {value:.3g}" if isinstance(value, float) else f"  {name:<40} {value}")
    return DONE


Command = (
    Annotated[Fit, tyro.conf.subcommand("fit")]
    | Annotated[View, tyro.conf.subcommand("view")]
    | Annotated[Weights, tyro.conf.subcommand("weights")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(arguments: list[str] | None = None) -> None:
    """`body3d COMMAND …`"""
    run(
        Command,
        lambda args: {Fit: fit, View: view, Weights: weights, Bench: bench}[type(args)](args),
        "body3d",
        arguments,
    )


def run(kind, command: Callable, prog: str, arguments: list[str] | None = None) -> None:
    """Parse the command line as `kind`, run `command` and exit with its code; what the user did wrong is one line on stderr."""
    sys.exit(_code(kind, command, prog, arguments))


def _code(kind, command: Callable, prog: str, arguments: list[str] | None) -> int:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            args = tyro.cli(kind, prog=prog, args=arguments)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            return DONE
        _complain(f"{prog}: {_one_line(complaint.getvalue())} (see {prog} --help)")
        return BAD_INPUT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return command(args)
    except (InputError, MissingExtra) as error:
        _complain(f"{prog}: {error}")
        return BAD_INPUT
    except KeyboardInterrupt:
        _complain("stopped")
        return 130


def _one_line(text: str) -> str:
    """tyro's boxed complaint as one sentence."""
    text = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯│─]+", " ", text)
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if line and line not in ("Parsing error", "Unrecognized options", "Missing value")]
    chatter = ("For full helptext", "Perhaps you meant", "Argument helptext")
    told = next((i for i, line in enumerate(said) if line.startswith(chatter)), len(said))
    return re.sub(r"\s+", " ", " ".join(said[:told])) or "the command line could not be read"


def _complain(text: str) -> None:
    print(re.sub(r"\s*\n\s*", " ", text), file=sys.stderr)
