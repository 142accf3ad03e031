"""`body3d evaluate` and `scripts/evaluate.py`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from body3d.commands.shared import DONE
from body3d.errors import InputError


@dataclass(frozen=True)
class Evaluate:
    """Score predictions by a named protocol: a table per action and joint, result.json and a plot."""

    predictions: tyro.conf.Positional[Path]
    """An .npz of poses (what it holds: `body3d.evaluate.poses`), or COCO's results for coco."""
    truth: tyro.conf.Positional[Path]
    """The same of the ground truth, or COCO's annotations."""
    protocol: str
    """h36m-1, h36m-2, 3dmppe-1, 3dmppe-2, 3dhp-14, 3dhp-17, mupots, mrpe, motion, mesh, lsp-pck, lsp-pcp,
    flic-pck, mpii-pckh or coco."""
    out: Path = Path("results/evaluation")
    """Folder of result.json and plot.png."""


def evaluate(args: Evaluate) -> int:
    """Run `Evaluate`; the exit code."""
    from body3d.atomic import check_writable, staged
    from body3d.evaluate import PROTOCOLS
    from body3d.evaluate import evaluate as score
    from body3d.evaluate.coco import evaluate_coco
    from body3d.evaluate.picture import picture
    from body3d.evaluate.poses import read_poses
    from body3d.export import save_json
    from body3d.images import write_image

    check_writable(args.out)
    if args.protocol == "coco":
        result = evaluate_coco(args.predictions, args.truth)
    elif args.protocol in PROTOCOLS:
        key = PROTOCOLS[args.protocol].key
        result = score(args.protocol, read_poses(args.predictions, key), read_poses(args.truth, key))
    else:
        raise InputError(f"there is no protocol {args.protocol!r}; there are {', '.join(PROTOCOLS)}, coco")
    print(result.describe())
    print()
    print(result.table())
    with staged(args.out, replaces="plot.png") as draft:
        save_json(draft / "result.json", result.as_json())
        write_image(draft / "plot.png", picture(result))
    print(f"\nwritten to {args.out}/")
    return DONE
