"""`body3d lift`: 3D joints from a photo or from given 2D keypoints, without fitting a body."""

import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from body3d.commands.shared import DONE, NOBODY, check_device, check_max_people, complain, each
from body3d.errors import InputError


@dataclass(frozen=True)
class Lift:
    """Lift the 2D keypoints of every person to 3D joints: lift.npz, lift.json and a plot from two sides per input."""

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Photos, or keypoint files (OpenPose or COCO JSON)."""
    out: Path = Path("results")
    """Folder for the results; photo.jpg goes to OUT/photo/."""
    size: tuple[int, int] | None = None
    """Width and height of the image that keypoint files belong to, in pixels; not needed for photos."""
    weights: Path | None = None
    """What scripts/ship_lifter.py made of a training of configs/embedded_lifter.py, in place of the shipped lifter."""
    focal: float | None = None
    """Focal length in pixels."""
    fov: float | None = None
    """Field of view in degrees across the longer side."""
    max_people: int | None = None
    """At most so many people, the largest first."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 …"""


def lift(args: Lift) -> int:
    """Run `Lift`; the exit code."""
    from body3d.atomic import check_writable
    from body3d.lift.embedded import embedded_lifter, load_lifter

    if not args.inputs:
        raise InputError("no photo or keypoint file was given")
    check_max_people(args.max_people)
    check_device(args.device)
    check_writable(args.out)
    lifter = (load_lifter(args.weights) if args.weights else embedded_lifter()).to(args.device)
    return each(args.inputs, args.out, lambda source, folder: _lift_one(args, lifter, source, folder))


def _lift_one(args: Lift, lifter, source: Path, folder: Path) -> int:
    from body3d.lift.embedded import lift as lift_people
    from body3d.lift.results import write_lifted
    from body3d.pipeline import choose_camera, largest_first

    exif = None
    if source.suffix.lower() == ".json":
        from body3d.detect.files import read_keypoints

        if args.size is None:
            raise InputError(f"{source}: keypoints alone do not say how large the image is; give --size WIDTH HEIGHT")
        if min(args.size) < 1:
            raise InputError(f"--size must be two positive numbers, got {args.size[0]} {args.size[1]}")
        size = (args.size[1], args.size[0])
        detections = read_keypoints(source)
    else:
        from body3d.detect.embedded import detect_embedded
        from body3d.images import exif_focal_px, read_image

        image = read_image(source)
        size = image.shape[:2]
        exif = exif_focal_px(source, size)
        detections = detect_embedded(image, args.max_people)
    camera, focal_source = choose_camera(size, args.focal, args.fov, exif)
    detections = largest_first(detections, args.max_people).to(args.device)
    if not len(detections):
        complain(f"{source}: no person found")
        return NOBODY
    began = time.perf_counter()
    lifted = lift_people(lifter, detections.keypoints, camera.to(args.device))
    seconds = time.perf_counter() - began
    write_lifted(folder, lifted, detections, camera, focal_source)
    print(f"{source}: {len(detections)} lifted in {1000 * seconds:.0f} ms to {folder}/ (focal length {focal_source})")
    return DONE
