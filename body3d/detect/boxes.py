"""Boxes around people: by the embedded front end, by torchvision's detector where it is installed, or from a file."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8

from body3d.detect.embedded import detect_embedded
from body3d.errors import InputError, MissingExtra
from body3d.types import Boxes

__all__ = ["find_boxes", "read_boxes"]

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
        return detect_embedded(image, max_people).boxes
    return _torchvision(image, device)[:max_people]


@torch.no_grad()
def _torchvision(image: UInt8[np.ndarray, "H W 3"], device: str) -> Boxes:
    """Faster R-CNN on MobileNetV3; torchvision fetches its weights once, into its own cache."""
    try:
        from torchvision.models import detection  # type: ignore  # an extra
    except (ImportError, RuntimeError) as error:
        raise MissingExtra("torchvision", "torchvision", "--finder torchvision") from error
    net = detection.fasterrcnn_mobilenet_v3_large_fpn(weights="DEFAULT").to(device).eval()
    found = net([torch.from_numpy(image).permute(2, 0, 1).to(device) / 255])[0]
    people = (found["labels"] == PERSON) & (found["scores"] > LEAST_SCORE)
    return Boxes(found["boxes"][people].cpu(), found["scores"][people].cpu())


def read_boxes(path: Path | str) -> Boxes:
    """A JSON list of [x0, y0, x1, y1], pixels."""
    path = Path(path)
    try:
        xyxy = torch.tensor(json.loads(path.read_text(encoding="utf-8")), dtype=torch.float32)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: a JSON list of boxes [x0, y0, x1, y1] was expected ({error})") from error
    if xyxy.numel() == 0:
        xyxy = xyxy.reshape(0, 4)
    if xyxy.ndim != 2 or xyxy.shape[1] != 4:
        raise InputError(
            f"{path}: a JSON list of boxes [x0, y0, x1, y1] was expected, got the shape {tuple(xyxy.shape)}"
        )
    return Boxes(xyxy, torch.ones(len(xyxy)))
