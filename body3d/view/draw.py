"""Keypoints, skeletons, boxes and labels on images. Every function returns a new image; the given one stays."""

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from body3d.skeletons import JointSet
from body3d.types import Boxes, Keypoints2D

# The subject's sides, told apart by colour-blind viewers too; RGB.
LEFT, RIGHT, MIDDLE = (60, 150, 255), (255, 120, 50), (250, 220, 90)
FRACTION = 4  # binary digits of a pixel that OpenCV draws to


def draw_keypoints(
    image: UInt8[np.ndarray, "H W 3"], keypoints: Keypoints2D, min_conf: float = 0.05, thickness: float | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Joints as dots and the set's bones as lines, for one person or a batch.

    Left is blue, right is orange, the rest yellow; confidence (clipped to 0..1) is opacity, a bone has that of its less
    certain end, and below `min_conf` nothing is drawn. Lines are `thickness` pixels wide (by default 1 % of the
    person's extent, but no more than 0.6 % of the image's longer side), half of that in hands and faces.
    """
    image = image.copy()
    joints = keypoints.joints
    colours = [side_colour(name) for name in joints.names]
    fine = _fine(joints)
    xy = keypoints.xy.numpy(force=True).reshape(-1, len(joints), 2)
    conf = keypoints.conf.numpy(force=True).reshape(-1, len(joints)).clip(0, 1)
    conf = np.where(np.isfinite(xy).all(-1) & np.isfinite(conf), conf, 0)
    for points, sure in zip(xy, conf, strict=True):
        drawn = points[sure >= min_conf]
        if not len(drawn):
            continue
        line = thickness or min(
            max(1.5, 0.01 * float(np.ptp(drawn, axis=0).max())), max(2.0, 0.006 * max(image.shape[:2]))
        )
        for parent, child in joints.bones:
            if (opacity := float(min(sure[parent], sure[child]))) >= min_conf:
                colour = colours[child] if colours[child] != MIDDLE else colours[parent]
                width = 0.5 * line if fine[child] else line
                _blend(image, points[[parent, child]], colour, opacity, width)
        for i in np.flatnonzero(sure >= min_conf):
            _blend(image, points[[i]], colours[i], float(sure[i]), 0.6 * line if fine[i] else 1.8 * line)
    return image


def draw_boxes(
    image: UInt8[np.ndarray, "H W 3"], boxes: Boxes, labels: list[str] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Rectangles (N, 4) with their labels (by default the scores)."""
    image = image.copy()
    width = max(1, round(0.003 * max(image.shape[:2])))
    xyxy = boxes.xyxy.numpy(force=True).reshape(-1, 4)
    score = boxes.score.numpy(force=True).reshape(-1)
    for i, (x0, y0, x1, y1) in enumerate(xyxy):
        if np.isfinite((x0, y0, x1, y1)).all():
            corners = np.clip([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], -1e4, 1e5)
            cv2.polylines(image, [_fixed(corners)], True, MIDDLE, width, cv2.LINE_AA, FRACTION)
            image = draw_label(image, labels[i] if labels else f"{score[i]:.2f}", tuple(corners[0].tolist()))
    return image


def draw_label(
    image: UInt8[np.ndarray, "H W 3"],
    text: str,
    at: tuple[float, float],
    colour: tuple[int, int, int] = (255, 255, 255),
    size: float | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Text on a dark plate whose upper left corner is at pixel `at` (x, y), moved inside the image if need be; letters
    are `size` pixels high (by default 2.5 % of the image's longer side)."""
    font = ImageFont.load_default(size or max(11.0, 0.025 * max(image.shape[:2])))
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas, "RGBA")
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = max(2, round(0.25 * (bottom - top)))
    x = max(0, min(round(at[0]), canvas.width - (right - left) - 2 * pad))
    y = max(0, min(round(at[1]), canvas.height - (bottom - top) - 2 * pad))
    draw.rectangle((x, y, x + right - left + 2 * pad, y + bottom - top + 2 * pad), fill=(20, 22, 26, 150))
    draw.text((x + pad - left, y + pad - top), text, font=font, fill=colour)
    return np.array(canvas)


def side_colour(name: str) -> tuple[int, int, int]:
    """The colour of a joint by the side in its name."""
    words = name.split("_")
    return LEFT if "left" in words else RIGHT if "right" in words else MIDDLE


def _fine(joints: JointSet) -> list[bool]:
    """Which joints belong to hands or face, where thick lines would be a blot."""
    fingers = ("thumb", "index", "middle", "ring", "pinky", "hand")
    face = ("jaw", "chin", "brow", "nose", "nostril", "eye", "pupil", "mouth", "lips", "face")

    def is_fine(name: str) -> bool:
        part = name.removeprefix("left_").removeprefix("right_")
        # Eyes, ears and nose of the body sets are bare words and drawn like body joints.
        return part.startswith(fingers) or (part.startswith(face) and part not in ("nose", "eye", "jaw"))

    return [is_fine(name) for name in joints.names]


def _fixed(points: np.ndarray) -> np.ndarray:
    """Pixel coordinates as OpenCV's fixed-point numbers; it shares our convention of pixel centres at integers."""
    return np.rint(np.asarray(points) * (1 << FRACTION)).astype(np.int32)


def _blend(image: np.ndarray, points: np.ndarray, colour: tuple[int, int, int], opacity: float, width: float) -> None:
    """Draw a line (two points) or a dot (one) `width` pixels wide into the image."""
    height, length = image.shape[:2]
    margin = int(np.ceil(width)) + 2
    x0, y0 = np.clip(np.floor(points.min(0)) - margin, 0, (length, height)).astype(int)
    x1, y1 = np.clip(np.ceil(points.max(0)) + margin + 1, 0, (length, height)).astype(int)
    if x0 >= x1 or y0 >= y1 or np.abs(points).max() > 1e5:
        return
    region = image[y0:y1, x0:x1]
    drawn = region.copy()
    local = _fixed(points - (x0, y0))
    if len(points) == 2:
        cv2.line(drawn, local[0].tolist(), local[1].tolist(), colour, max(1, round(width)), cv2.LINE_AA, FRACTION)
    else:
        radius = round(width / 2 * (1 << FRACTION))
        cv2.circle(drawn, local[0].tolist(), radius, colour, cv2.FILLED, cv2.LINE_AA, FRACTION)
    cv2.addWeighted(drawn, opacity, region, 1 - opacity, 0, dst=region)
