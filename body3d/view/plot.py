"""Small charts as pictures: bars, curves, and a skeleton from two sides. No plotting library is needed for these."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from body3d.skeletons import JointSet
from body3d.types import Keypoints2D
from body3d.view.draw import draw_keypoints
from body3d.view.sides import contact_sheet

__all__ = ["bars", "curves", "skeleton_views"]

INK, GRID, PAPER = (40, 44, 52), (222, 225, 230), (255, 255, 255)
# Told apart by colour-blind viewers too (Okabe & Ito).
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (120, 120, 120))
SCALE = 2  # drawn twice as large and reduced, for smooth lines


def bars(values: Mapping[str, float | int], title: str, unit: str = "") -> UInt8[np.ndarray, "H W 3"]:
    """Horizontal bars, one per name, with their values."""
    font, row, left, right = _font(13), 24 * SCALE, 190 * SCALE, 90 * SCALE
    width, top = 760 * SCALE, 44 * SCALE
    image = Image.new("RGB", (width, top + row * len(values) + 16 * SCALE), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((16 * SCALE, 12 * SCALE), title, font=_font(16), fill=INK)
    finite = [v for v in values.values() if math.isfinite(v)]
    longest = max(finite, default=1.0) or 1.0
    for i, (name, value) in enumerate(values.items()):
        y = top + i * row
        draw.text((left - 10 * SCALE, y + row / 2), name, font=font, fill=INK, anchor="rm")
        end = left + (width - left - right) * (max(value, 0) / longest if math.isfinite(value) else 0)
        draw.rectangle((left, y + 4 * SCALE, max(end, left + 1), y + row - 4 * SCALE), fill=COLOURS[0])
        draw.text((end + 6 * SCALE, y + row / 2), f"{value:.4g}{unit}", font=font, fill=INK, anchor="lm")
    return _reduced(image)


def curves(
    x: Sequence[float | int], named: Mapping[str, Sequence[float | int]], xlabel: str, columns: int = 2
) -> UInt8[np.ndarray, "H W 3"]:
    """One panel per curve, each with its own scale, with the last value written out."""
    panels = {name: _panel(x, y, xlabel) for name, y in named.items()}
    return contact_sheet(panels, min(columns, len(panels)))


def _panel(x: Sequence[float | int], y: Sequence[float | int], xlabel: str) -> UInt8[np.ndarray, "H W 3"]:
    width, height = 420 * SCALE, 280 * SCALE
    left, right, top, bottom = 62 * SCALE, 16 * SCALE, 46 * SCALE, 40 * SCALE
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    finite = [v for v in y if math.isfinite(v)]
    ticks_y, ticks_x = _ticks(min(finite, default=0.0), max(finite, default=1.0)), _ticks(float(min(x)), float(max(x)))
    at_x = lambda v: left + (width - left - right) * (v - ticks_x[0]) / (ticks_x[-1] - ticks_x[0])
    at_y = lambda v: height - bottom - (height - top - bottom) * (v - ticks_y[0]) / (ticks_y[-1] - ticks_y[0])
    for v in ticks_y:
        draw.line((left, at_y(v), width - right, at_y(v)), fill=GRID, width=SCALE)
        draw.text((left - 6 * SCALE, at_y(v)), f"{v:.4g}", font=_font(11), fill=INK, anchor="rm")
    for v in ticks_x:
        draw.line((at_x(v), top, at_x(v), height - bottom), fill=GRID, width=SCALE)
        draw.text((at_x(v), height - bottom + 5 * SCALE), f"{v:.4g}", font=_font(11), fill=INK, anchor="mt")
    draw.text((width - right, height - 6 * SCALE), xlabel, font=_font(11), fill=INK, anchor="rb")
    points = [(at_x(a), at_y(b)) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    if len(points) > 1:
        draw.line(points, fill=COLOURS[0], width=2 * SCALE, joint="curve")
    if points:
        a, b = points[-1]
        draw.ellipse((a - 3 * SCALE, b - 3 * SCALE, a + 3 * SCALE, b + 3 * SCALE), fill=COLOURS[0])
        aside, anchor = (8, "ls") if a < 0.8 * width else (-4, "rb")  # not over the curve, where there is room
        draw.text(
            (a + aside * SCALE, b - 6 * SCALE), f"{finite[-1]:.4g}", font=_font(12), fill=COLOURS[0], anchor=anchor
        )
    return _reduced(image)


def skeleton_views(xyz: Float[Tensor, "J 3"], joints: JointSet, size: int = 480) -> UInt8[np.ndarray, "H W 3"]:
    """A pose in camera axes (metres) as the camera sees it and from its left, on a grid of half metres."""
    centre = (xyz.amin(0) + xyz.amax(0)) / 2
    scale = 0.8 * size / (xyz.amax(0) - xyz.amin(0)).amax().clamp_min(1e-3).item()
    turned = torch.stack([-xyz[:, 2], xyz[:, 1], xyz[:, 0]], -1)
    middle = torch.stack([-centre[2], centre[1], centre[0]], -1)
    tiles = {}
    for name, points, origin in (
        ("from the camera", xyz, centre),
        ("from the side (camera on the right)", turned, middle),
    ):
        tile = np.full((size, size, 3), 246, np.uint8)
        for axis in (0, 1):
            first = origin[axis].item() - size / 2 / scale
            for k in range(math.ceil(first / 0.5), math.floor((first + size / scale) / 0.5) + 1):
                at = round((0.5 * k - first) * scale)
                if 0 <= at < size:
                    tile[(slice(None), at) if axis == 0 else (at, slice(None))] = GRID
        xy = (points[:, :2] - origin[:2]) * scale + (size - 1) / 2
        tiles[name] = draw_keypoints(tile, Keypoints2D(xy, torch.ones(len(joints)), joints), thickness=size / 110)
    return contact_sheet(tiles, 2)


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers around the range."""
    if high <= low:
        low, high = low - 0.5 * max(1.0, abs(low)), high + 0.5 * max(1.0, abs(high))
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [k * step for k in range(first, last + 1)]


def _font(size: int):
    return ImageFont.load_default(size * SCALE)


def _reduced(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    return np.array(image.resize((image.width // SCALE, image.height // SCALE), Image.Resampling.LANCZOS))
