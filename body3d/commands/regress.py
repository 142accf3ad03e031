"""`body3d regress`: 3D joints straight from a photo, by one of the five direct regressors."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from body3d.commands.shared import DONE, NOBODY, check_device, check_max_people, complain, each
from body3d.errors import InputError


@dataclass(frozen=True)
class Regress:
    """Regress everybody's 3D joints from photos: regress.npz, regress.json and a plot from two sides per person."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Photos."""
    net: Literal["vnect", "volumetric", "mppe", "dconvmp", "orpm"] = "mppe"
    """The network; orpm looks at the whole photo, the others at a box around each person."""
    weights: Path | None = None
    """best.pt or last.pt of a training (`configs/synthetic_*.py` and others), or a published checkpoint."""
    root_weights: Path | None = None
    """mppe: RootNet's, which says how far away people are; without it the length of their limbs does."""
    boxes: Path | None = None
    """A JSON list of boxes [x0, y0, x1, y1] in pixels, in place of the embedded finder (one image)."""
    flip: bool = False
    """Average with the mirrored crops."""
    out: Path = Path("results")
    """Folder for the results; photo.jpg goes to OUT/photo/."""
    focal: float | None = None
    """Focal length in pixels."""
    fov: float | None = None
    """Field of view in degrees across the longer side."""
    max_people: int | None = None
    """At most so many people, those that stand out most."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 …"""


def regress(args: Regress) -> int:
    """Run `Regress`; the exit code."""
    from body3d.atomic import check_writable
    from body3d.nets3d.inference import read_regressor, read_root_finder

    if not args.images:
        raise InputError("no image was given")
    if args.weights is None:
        raise InputError(f"--net {args.net} needs --weights FILE: best.pt of a training, or a published checkpoint")
    if args.root_weights is not None and args.net != "mppe":
        raise InputError(f"--root-weights is for --net mppe, not {args.net}")
    if args.boxes is not None and len(args.images) > 1:
        raise InputError("--boxes belongs to one image; give the images one by one")
    if args.boxes is not None and args.net == "orpm":
        raise InputError("--net orpm looks at the whole photo: leave --boxes out")
    if args.flip and args.net == "orpm":
        raise InputError("--flip averages crops, of which --net orpm has none: leave it out")
    check_max_people(args.max_people)
    check_device(args.device)
    check_writable(args.out)
    net = read_regressor(args.weights, args.net).to(args.device)
    roots = read_root_finder(args.root_weights).to(args.device) if args.root_weights else None
    return each(args.images, args.out, lambda source, folder: _regress_one(args, net, roots, source, folder))


def _regress_one(args: Regress, net, roots, source: Path, folder: Path) -> int:
    from body3d.detect.boxes import find_boxes, read_boxes
    from body3d.fit.checks import focal_warning
    from body3d.images import exif_focal_px, read_image
    from body3d.nets3d.inference import regress_photo
    from body3d.nets3d.results import write_regressed
    from body3d.pipeline import choose_camera

    image = read_image(source)
    camera, focal_source = choose_camera(image.shape[:2], args.focal, args.fov, exif_focal_px(source, image.shape[:2]))
    boxes = None
    if args.net != "orpm":
        boxes = read_boxes(args.boxes) if args.boxes else find_boxes(image, "embedded", args.max_people)
        boxes = boxes[: args.max_people]
        if not len(boxes.xyxy):
            complain(f"{source}: no person found")
            return NOBODY
    began = time.perf_counter()
    people = regress_photo(net, image, camera, boxes, roots, args.flip)
    seconds = time.perf_counter() - began
    if args.net == "orpm":
        people = people.first(args.max_people)
    count = len(people.found.root)
    if not count:
        complain(f"{source}: no person found")
        return NOBODY
    warning = focal_warning(camera)
    write_regressed(folder, people, camera, focal_source, args.net, image, warning)
    print(
        f"{source}: {count} {'person' if count == 1 else 'people'} in {1000 * seconds:.0f} ms in {folder}/ "
        f"(depth from {people.depth_source}; focal length {focal_source})" + (f"; {warning}" if warning else "")
    )
    return DONE
