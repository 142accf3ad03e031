"""`body3d data check NAME PATH`: what of a data set is there, what is missing, and nine samples to look at.
`body3d data synth --out DIR --count N`: rendered people of whom everything is known, as images and annotations in COCO's form.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from body3d.commands.shared import BAD_INPUT, DONE, complain
from body3d.errors import InputError


@dataclass(frozen=True)
class Check:
    """Say what was found of a data set and draw nine samples of it with their joints."""

    name: tyro.conf.Positional[str]
    """lsp, lspet, flic, mpii, coco, aic, crowdpose, h36m, mpi_inf_3dhp, panoptic, amass or mocap."""
    path: tyro.conf.Positional[Path]
    """The folder of the set; data/README.md shows what lies where."""
    out: Path | None = None
    """The picture; results/NAME.png if not given."""


@dataclass(frozen=True)
class Synth:
    """Write images/000000.jpg … and annotations.json: COCO's keypoints and, of everybody, 3D joints, parameters and camera."""

    out: Path
    """A folder that is not there yet, or empty."""
    count: int
    """Images."""
    poses: Path | None = None
    """The file of scripts/retarget_mocap.py; without it poses are drawn from the shipped prior."""
    size: int = 256
    """Width and height in pixels."""
    people: tuple[int, int] = (1, 4)
    """Fewest and most people in an image."""
    seed: int = 0
    """Another seed gives other images, the same one the same."""
    held_out: bool = False
    """Poses of the subjects that nothing is trained on."""
    backgrounds: Path | None = None
    """A folder of pictures without people; without it surroundings are made up."""


@dataclass(frozen=True)
class Data:
    """Look at a data set, or make one of rendered people."""

    action: Annotated[
        Annotated[Check, tyro.conf.subcommand("check", prefix_name=False)]
        | Annotated[Synth, tyro.conf.subcommand("synth", prefix_name=False)],
        tyro.conf.arg(name=""),
    ]


def data(args: Data) -> int:
    """Run `Data`; the exit code."""
    return check(args.action) if isinstance(args.action, Check) else synth(args.action)


def check(args: Check) -> int:
    """Run `Check`; the exit code."""
    from body3d.datasets.catalogue import SETS
    from body3d.images import write_image
    from body3d.view.samples import nine_samples

    if args.name not in SETS:
        raise InputError(f"there is no data set {args.name!r}; there are {', '.join(SETS)}")
    chosen = SETS[args.name]
    print(f"{chosen.title} in {args.path} (licence: {chosen.licence}; from {chosen.source})")
    if not args.path.is_dir():
        raise InputError(f"{args.path}: there is no such folder; {chosen.title} comes from {chosen.source}")
    opened, broken = None, False
    for form in chosen.forms:
        if not any(args.path.glob(form.needs)):
            print(f"  missing  {form.name}: no {form.needs}")
            continue
        try:
            samples = form.open(args.path)
            shortfall = "" if form.expected in (None, len(samples)) else f", where the whole set has {form.expected:,}"
            print(f"  found    {form.name}: {len(samples):,} samples{shortfall}")
            opened = opened or (form.name, samples)
        except InputError as error:
            print(f"  broken   {form.name}")
            complain(str(error))
            broken = True
    if opened is None:
        raise InputError(f"{args.path} holds nothing of {chosen.title} that can be read; it comes from {chosen.source}")
    out = args.out or Path("results") / f"{args.name}.png"
    write_image(out, nine_samples(opened[1]))
    print(f"nine samples of {opened[0]!r} are drawn in {out}")
    return BAD_INPUT if broken else DONE


def synth(args: Synth) -> int:
    """Run `Synth`; the exit code."""
    from tqdm import tqdm

    from body3d.atomic import check_writable, staged
    from body3d.datasets.synthetic import Synthetic
    from body3d.datasets.synthetic_coco import annotations_of, header, image_of
    from body3d.images import write_image
    from body3d.skeletons import COCO17

    check_writable(args.out)
    if args.out.is_dir() and any(args.out.iterdir()):
        raise InputError(f"{args.out} is not empty: name a new folder, or remove what is in it")
    size = (args.size, args.size)
    scenes = Synthetic(args.poses, args.held_out, args.people, size, COCO17, args.backgrounds, args.seed, args.count)
    images, people = [], []
    with staged(args.out, replaces="annotations.json") as draft:
        for index in tqdm(range(args.count), desc="images", leave=False, disable=None):
            scene = scenes.scene(index)
            images.append(image_of(scene, index))
            people += annotations_of(scene, index, len(people))
            write_image(draft / "images" / images[-1]["file_name"], scene.image.numpy())
        content = header(COCO17) | {"images": images, "annotations": people}
        (draft / "annotations.json").write_text(json.dumps(content, separators=(",", ":")))
    print(f"{args.count} images of {len(people)} people in {args.out}/")
    return DONE
