"""`body3d data check NAME PATH`: what of a data set is there, what is missing, and nine samples to look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from body3d.commands.shared import BAD_INPUT, DONE, complain
from body3d.errors import InputError


@dataclass(frozen=True)
class Data:
    """Say what was found of a data set and draw nine samples of it with their joints."""

    action: tyro.conf.Positional[Literal["check"]]
    name: tyro.conf.Positional[str]
    """lsp, lspet, flic, mpii, coco, aic, crowdpose, h36m, mpi_inf_3dhp, panoptic, amass or mocap."""
    path: tyro.conf.Positional[Path]
    """The folder of the set; data/README.md shows what lies where."""
    out: Path | None = None
    """The picture; results/NAME.png if not given."""


def data(args: Data) -> int:
    """Run `Data`; the exit code."""
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
