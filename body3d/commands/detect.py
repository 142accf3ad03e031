"""`body3d detect`: 2D keypoints of everybody in photos, by the embedded front end or a network of one's choice."""

import inspect
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import tyro

from body3d.commands.shared import DONE, NOBODY, check_device, check_max_people, complain, each
from body3d.errors import InputError


@dataclass(frozen=True)
class Detect:
    """Find everybody in each photo and write keypoints.png and keypoints.json: COCO results, of 17 or 133 keypoints. From a network
    of other joints they are converted to the 17, and its own stand beside them: joint_names, and points (x, y, confidence)."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Photos."""
    net: str = "embedded"
    """embedded (whole body, no weights needed), a network of body3d.nets such as vitpose_b or one that finds everybody at once such
    as openpose_body with --weights, a file.onnx of RTMPose or ViTPose, or a config.py of a training with --weights."""
    weights: Path | None = None
    """Its published checkpoint; of a config, best.pt of its training."""
    finder: Literal["embedded", "torchvision"] = "embedded"
    """What finds the boxes for a --net that sees one person."""
    boxes: Path | None = None
    """A JSON list of boxes [x0, y0, x1, y1] in pixels, in place of a finder (one image)."""
    flip: bool = False
    """Average with the mirrored crops."""
    out: Path = Path("results")
    """Folder for the results; photo.jpg goes to OUT/photo/."""
    max_people: int | None = None
    """At most so many people, those that stand out most (of --boxes, the first)."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 …"""


def detect(args: Detect) -> int:
    """Run `Detect`; the exit code."""
    from body3d.atomic import check_writable
    from body3d.bottomup.everybody import FINDERS

    if not args.images:
        raise InputError("no image was given")
    if args.boxes is not None and len(args.images) > 1:
        raise InputError("--boxes belongs to one image; give the images one by one")
    check_max_people(args.max_people)
    _check_options(args, args.net in FINDERS)
    check_device(args.device)
    check_writable(args.out)
    net = None if args.net == "embedded" else _at_once(args) if args.net in FINDERS else _network(args)
    return each(args.images, args.out, lambda source, folder: _detect_one(args, net, source, folder))


def _check_options(args: Detect, at_once: bool) -> None:
    """InputError for those that would do nothing."""
    embedded = args.net == "embedded"
    if embedded and args.weights is not None:
        raise InputError(f"--net embedded has its weights; leave --weights {args.weights} out")
    if embedded and args.flip:
        raise InputError("--net embedded looks at mirror images anyway; leave --flip out")
    if args.finder != "embedded" and (embedded or at_once):
        raise InputError(f"--net {args.net} finds everybody by itself; leave --finder {args.finder} out")
    if args.finder != "embedded" and args.boxes is not None:
        raise InputError(f"--boxes {args.boxes} is in place of a finder; leave --finder {args.finder} out")


def _network(args: Detect):
    from body3d import nets
    from body3d.bottomup.everybody import FINDERS
    from body3d.posenet import fused

    if args.net.lower().endswith(".onnx"):
        from body3d.detect.onnx import read_onnx

        if args.weights is not None:
            raise InputError(f"--net {args.net} has its weights in it; leave --weights {args.weights} out")
        return read_onnx(args.net)
    if args.net.endswith(".py"):
        return fused(_trained(args).to(args.device))
    builders = {name: getattr(nets, name) for name in nets.__all__}
    complete = {
        name: build
        for name, build in builders.items()
        if all(p.default is not p.empty for p in inspect.signature(build).parameters.values())
    }
    if args.net not in complete:
        names = [*complete, *FINDERS]
        near = get_close_matches(args.net, names, 5, 0.5) or names
        raise InputError(
            f"there is no network {args.net!r}; there are embedded, a file.onnx, a config.py, {', '.join(near)}"
        )
    return fused(_loaded(args, complete[args.net]))


def _at_once(args: Detect):
    from body3d.bottomup.everybody import FINDERS

    finder = FINDERS[args.net]
    if args.boxes is not None:
        raise InputError(f"--net {args.net} finds everybody by itself; leave --boxes {args.boxes} out")
    if args.flip and finder.flips is None:
        raise InputError(f"--net {args.net} is not averaged with mirror images; leave --flip out")
    return _loaded(args, finder.build)


def _loaded(args: Detect, build):
    if args.weights is None:
        raise InputError(f"--net {args.net} needs --weights FILE: its published checkpoint")
    return build(weights=args.weights).to(args.device)


def _trained(args: Detect):
    """The network of a config, with the weights of its training."""
    from body3d.checkpoints import load_into, read_published
    from body3d.learn.configs import read_config
    from body3d.learn.pose2d import PoseRun

    run = read_config(Path(args.net))
    if not isinstance(run, PoseRun):
        raise InputError(f"{args.net} is of {type(run).__name__}, not of a network that finds 2D joints (PoseRun)")
    if args.weights is None:
        raise InputError(f"--net {args.net} needs --weights FILE: best.pt of its training")
    net = run.net(run.data.joints)
    load_into(net, read_published(args.weights), args.weights)
    return net


def _detect_one(args: Detect, net, source: Path, folder: Path) -> int:
    from body3d.atomic import staged
    from body3d.bottomup.everybody import FINDERS, as_detections
    from body3d.detect.boxes import find_boxes, read_boxes
    from body3d.detect.embedded import detect_embedded
    from body3d.detect.files import coco_results
    from body3d.export import save_json
    from body3d.images import read_image, write_image
    from body3d.view.draw import draw_keypoints

    image = read_image(source)
    given = read_boxes(args.boxes)[: args.max_people] if args.boxes else None
    if net is None:
        found = detect_embedded(image, args.max_people, given)
    elif args.net in FINDERS:
        finder = FINDERS[args.net]
        people = (finder.flips if args.flip and finder.flips is not None else finder.find)(net, image)
        found = as_detections(people[: args.max_people])
    else:
        from body3d.detect.topdown import detect_topdown

        boxes = find_boxes(image, args.finder, args.max_people, args.device) if given is None else given
        found = detect_topdown(net, [image], [boxes], args.flip)[0]
    if not len(found):
        complain(f"{source}: no person found")
        return NOBODY
    with staged(folder, replaces="keypoints.*") as draft:
        save_json(draft / "keypoints.json", coco_results(found, source.name))
        write_image(draft / "keypoints.png", draw_keypoints(image, found.keypoints))
    print(f"{source}: {len(found)} {'person' if len(found) == 1 else 'people'} in {folder}/")
    return DONE
