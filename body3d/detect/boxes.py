"""Boxes around people: by the embedded front end, by torchvision's detector where it is installed, or from a file."""

import json
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from body3d.errors import InputError, MissingExtra
from body3d.types import Boxes

__all__ = ["checked", "find_boxes", "read_boxes"]

LEAST_SCORE = 0.5
PERSON = 1  # of COCO's categories


def find_boxes(
    image: UInt8[np.ndarray, "H W 3"],
    finder: Literal["embedded", "torchvision"] = "embedded",
    max_people: int | None = None,
    device: str = "cpu",
) -> Boxes:
    """Everybody's box in pixels, best first."""
    if finder == "embedded":
        from body3d.detect.embedded import detect_embedded  # which checks boxes that are given to it with `checked`

        return detect_embedded(image, max_people).boxes
    return _torchvision(image, device)[:max_people]


@torch.no_grad()
def _torchvision(image: UInt8[np.ndarray, "H W 3"], device: str) -> Boxes:
    """torchvision counts from the corner of pixel 0, `Boxes` from its centre."""
    found = _faster_rcnn(device)([torch.from_numpy(image).permute(2, 0, 1).to(device) / 255])[0]
    people = (found["labels"] == PERSON) & (found["scores"] > LEAST_SCORE)
    return Boxes(found["boxes"][people].cpu() - 0.5, found["scores"][people].cpu())


@cache
def _faster_rcnn(device: str) -> nn.Module:
    """Faster R-CNN on MobileNetV3; torchvision fetches its weights once, into its own cache."""
    try:
        from torchvision.models import detection  # type: ignore  # an extra
    except (ImportError, RuntimeError) as error:
        raise MissingExtra("torchvision", "torchvision", "--finder torchvision") from error
    try:
        net = detection.fasterrcnn_mobilenet_v3_large_fpn(weights="DEFAULT")
    except (OSError, RuntimeError) as error:  # no network, or a download cut short
        raise InputError(
            f"--finder torchvision cannot fetch its weights ({error}): leave it out, or give --boxes"
        ) from error
    return net.to(device).eval()


def read_boxes(path: Path | str) -> Boxes:
    """A JSON list of [x0, y0, x1, y1], pixels."""
    path = Path(path)
    try:
        xyxy = torch.tensor(json.loads(path.read_text(encoding="utf-8")), dtype=torch.float32)
    except (OSError, ValueError, TypeError, RuntimeError, OverflowError) as error:  # RecursionError is a RuntimeError
        raise InputError(f"{path}: a JSON list of boxes [x0, y0, x1, y1] was expected ({error})") from error
    if xyxy.numel() == 0:
        xyxy = xyxy.reshape(0, 4)
    if xyxy.ndim != 2 or xyxy.shape[1] != 4:
        raise InputError(
            f"{path}: a JSON list of boxes [x0, y0, x1, y1] was expected, got the shape {tuple(xyxy.shape)}"
        )
    return Boxes(xyxy, torch.ones(len(xyxy)))


def checked(boxes: Boxes, size: tuple[int, int]) -> Float[Tensor, "N 4"]:
    """The boxes, on the CPU. InputError for one that is empty, not finite or wholly outside the image of `size` (H, W)."""
    xyxy = boxes.xyxy.reshape(-1, 4).float().cpu()
    inside = (xyxy[:, :2] < xyxy.new_tensor([size[1], size[0]])) & (xyxy[:, 2:] > 0)
    good = xyxy.isfinite().all(-1) & (xyxy[:, 2:] > xyxy[:, :2]).all(-1) & inside.all(-1)
    if not good.all():
        bad = int((~good).nonzero()[0])
        raise InputError(
            f"box {bad} is {[round(v, 1) for v in xyxy[bad].tolist()]}: x0 y0 x1 y1 in pixels, with x0 < x1 and y0 < y1 and "
            f"some of it inside the image of {size[1]} x {size[0]} was expected"
        )
    return xyxy
