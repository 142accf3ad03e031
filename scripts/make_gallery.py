"""Draw fits of photos without the photos: what the camera sees, and the same bodies from the side, the back and above.

    python scripts/make_gallery.py results/a results/b … --out docs/gallery.jpg

Takes folders that `body3d fit` wrote. An overlay that looks right proves nothing about depth; the view from the side does.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro

from body3d.cli import run
from body3d.images import write_image
from body3d.view.draw import draw_label
from body3d.view.render import render
from body3d.view.scene import load_results
from body3d.view.sides import four_sides

HEIGHT = 360


@dataclass(frozen=True)
class Gallery:
    """Draw a sheet of fitted bodies, one row per results folder."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("docs/gallery.jpg")


def row(folder: Path) -> np.ndarray:
    """The view of the photo's camera, then side, back and top."""
    meshes, camera, _ = load_results(folder)
    width = round(HEIGHT * camera.size[1] / camera.size[0])
    blank = np.full((*camera.size, 3), 245, np.uint8)
    seen = cv2.resize(render(meshes, camera).over(blank), (width, HEIGHT), interpolation=cv2.INTER_AREA)
    frame = np.full((HEIGHT, 640, 3), 245, np.uint8)
    small = cv2.resize(seen, None, fx=min(1.0, 640 / width), fy=min(1.0, 640 / width), interpolation=cv2.INTER_AREA)
    top, left = (HEIGHT - small.shape[0]) // 2, (640 - small.shape[1]) // 2
    frame[top : top + small.shape[0], left : left + small.shape[1]] = small
    sides = four_sides(meshes, size=(HEIGHT, 400))
    pictures = [draw_label(frame, folder.name, (8.0, 8.0))]
    pictures += [draw_label(sides[name], name, (8.0, 8.0)) for name in ("side", "back", "top")]
    return np.concatenate(pictures, axis=1)


def main(args: Gallery) -> int:
    write_image(args.out, np.concatenate([row(folder) for folder in args.folders]))
    return 0


if __name__ == "__main__":
    run(Gallery, main, "make_gallery.py")
