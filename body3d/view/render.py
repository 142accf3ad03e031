"""Pictures of bodies without a display, a GPU or a system library: a z-buffer rasteriser in plain numpy.

Every visible surface sample is found by testing, for all triangles of about the same size at once, which samples of
their bounding boxes lie inside (Pineda, "A parallel algorithm for polygon rasterization", 1988). Inverse depth is
linear over the screen, so one 64-bit maximum per sample (inverse depth in the high bits, face number in the low ones)
is a whole z-buffer. Only the samples that win are shaded, and pixels are their averages.

Axes are the camera's (OpenCV: x right, y down, z forward, metres); pixel centres are at integers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from body3d.camera import Camera, distort
from body3d.types import Mesh

NEAR = 0.02  # metres in front of the camera where triangles are cut
SAMPLES = 2  # per pixel and axis: smooth edges
LARGE = 6_000_000  # pixels from which on a picture is looked at reduced: one sample per pixel is enough
BINS = np.array([1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64])  # side lengths of bounding boxes treated together
BATCH = 1 << 18  # bounding-box samples worked on at a time: keeps the temporaries in the processor's cache
STRIP = 1 << 21  # samples of the z-buffer held at a time, so that a large photo does not need a large memory
ROUNDING = 1e-5  # of barycentric coordinates: neighbouring triangles overlap by this much rather than leave a crack

PALETTE = np.array(  # soft, told apart also by colour-blind viewers; one per person, then from the start again
    [(150, 180, 225), (240, 170, 140), (150, 205, 170), (235, 205, 130), (200, 165, 215), (230, 150, 170),
     (140, 205, 210), (190, 180, 160)], np.uint8,
)  # fmt: skip


@dataclass(frozen=True)
class Rendering:
    """What a camera sees of some meshes."""

    colour: UInt8[np.ndarray, "H W 3"]  # RGB of the bodies alone; black where there is none
    alpha: Float[np.ndarray, "H W"]  # share of the pixel that is covered, 0..1
    depth: Float[np.ndarray, "H W"]  # metres along the optical axis; inf where less than half the pixel is covered
    person: Int[np.ndarray, "H W"]  # which mesh is in front; -1 where depth is inf

    def over(self, image: UInt8[np.ndarray, "H W 3"], opacity: float = 1.0) -> UInt8[np.ndarray, "H W 3"]:
        """The bodies laid over `image`."""
        if image.shape != self.colour.shape:
            raise ValueError(
                f"the image is {image.shape}, the rendering {self.colour.shape}: give the camera that size"
            )
        drawn = self.alpha > 0
        alpha, under = np.float32(opacity) * self.alpha[drawn][:, None], image[drawn].astype(np.float32)
        out = image.copy()
        out[drawn] = np.rint(under + alpha * (self.colour[drawn] - under))
        return out


def render(
    meshes: Sequence[Mesh],
    camera: Camera,
    colours: Sequence[UInt8[np.ndarray, "3"] | UInt8[np.ndarray, "V 3"]] | None = None,
) -> Rendering:
    """Draw `meshes` (each `verts` (V, 3), world metres) as `camera` sees them, each with its colour (RGB, for the mesh
    or per vertex; by default one of `PALETTE` each), softly lit from beside the camera.

    Lens distortion is applied to the vertices; edges between them stay straight.
    """
    height, width = camera.size
    samples = SAMPLES if height * width < LARGE else 1
    corners, shades, owner = _clip_near(*_scene(meshes, camera, PALETTE if colours is None else colours))
    xy = (_project(corners, camera) + 0.5) * samples - 0.5
    faces = _Faces.prepare(xy, 1 / corners[..., 2])

    colour = np.zeros((height, width, 3), np.uint8)
    alpha = np.zeros((height, width), np.float32)
    depth = np.full((height, width), np.inf, np.float32)
    person = np.full((height, width), -1, np.int32)
    rows = max(1, STRIP // (width * samples**2))
    for top in range(0, height, rows):
        strip = slice(top * width, min(top + rows, height) * width)  # of flat pixel numbers
        size = (min(rows, height - top) * samples, width * samples)
        row, column, face, inverse_depth = _visible(faces, top * samples, size)
        pixel = (row // samples) * width + column // samples
        covered = np.bincount(pixel, minlength=strip.stop - strip.start)
        some = np.flatnonzero(covered)
        count = covered[some]
        alpha.reshape(-1)[strip][some] = count / samples**2

        weights = faces.weights(face, column, row + top * samples)
        lit = shades.take(face, 0)
        for channel in range(3):
            shade = sum(weights[k] * lit[:, k, channel] for k in range(3))
            mean = np.bincount(pixel, shade)[some] / count
            colour.reshape(-1, 3)[strip, channel][some] = np.rint(mean)

        front, nearest = _nearest(pixel, face, inverse_depth, len(covered))
        half = some[count * 2 >= samples**2]
        depth.reshape(-1)[strip][half] = 1 / nearest[half]
        person.reshape(-1)[strip][half] = owner[front[half]]
    return Rendering(colour, alpha, depth, person)


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    meshes: Sequence[Mesh],
    camera: Camera,
    colours: Sequence[UInt8[np.ndarray, "3"]] | None = None,
    opacity: float = 0.9,
) -> UInt8[np.ndarray, "H W 3"]:
    """The photo with the bodies drawn over it; nearer people hide farther ones."""
    return render(meshes, camera, colours).over(image, opacity)


# From meshes to lit triangles in camera space ---------------------------------------------------------------------


def _scene(meshes: Sequence[Mesh], camera: Camera, colours) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All triangles of all meshes: corners (F, 3, 3) in camera space, lit colours (F, 3, 3) and mesh number (F,)."""
    R, t = camera.R.numpy(force=True).astype(np.float64), camera.t.numpy(force=True).astype(np.float64)
    corners, shades, owner = [np.zeros((0, 3, 3))], [np.zeros((0, 3, 3), np.float32)], [np.zeros(0, np.int32)]
    for number, mesh in enumerate(meshes):
        verts = mesh.verts.numpy(force=True).astype(np.float64) @ R.T + t
        faces = mesh.faces.numpy(force=True).astype(np.int64)
        if not np.isfinite(verts).all():
            raise ValueError(f"mesh {number} has vertices that are not finite: nothing to draw")
        corners.append(verts[faces])
        lit = light(vertex_normals(verts, faces), np.asarray(colours[number % len(colours)]))
        shades.append(lit[faces])
        owner.append(np.full(len(faces), number, np.int32))
    return np.concatenate(corners), np.concatenate(shades), np.concatenate(owner)


def vertex_normals(verts: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "V 3"]:
    """Unit normals, outward if faces are counter-clockwise from outside: the mean over the faces, weighted by area."""
    a, b, c = (verts[faces[:, k]] for k in range(3))
    of_face = np.cross(b - a, c - a)
    corner = faces.T.ravel()
    total = np.stack([np.bincount(corner, np.tile(of_face[:, k], 3), minlength=len(verts)) for k in range(3)], axis=-1)
    return total / np.maximum(np.linalg.norm(total, axis=-1, keepdims=True), 1e-20)


def light(
    normals: Float[np.ndarray, "V 3"], colour: UInt8[np.ndarray, "3"] | UInt8[np.ndarray, "V 3"]
) -> Float[np.ndarray, "V 3"]:
    """Shaded RGB, 0..255, of matt surfaces in a small studio: a large key light above left of the camera, a weaker one
    from the right, light from the sky and the floor, and a rim that lifts the outline off a dark photo."""
    key = np.clip((normals @ _unit(-0.45, -0.65, -0.75) + 0.25) / 1.25, 0, None)  # +0.25: soft, it wraps around
    fill = np.clip((normals @ _unit(0.85, -0.15, -0.5) + 0.25) / 1.25, 0, None)
    sky = 0.5 - 0.5 * normals[:, 1]  # y is down
    shine = np.clip(normals @ _unit(-0.25, -0.35, -0.9), 0, None) ** 24
    rim = (1 - np.abs(normals[:, 2])) ** 4
    amount = 0.10 + 0.72 * key + 0.14 * fill + 0.18 * sky
    linear = (colour / 255.0) ** 2.2 * amount[:, None] + (0.04 * shine + 0.06 * rim)[:, None]
    return (255 * np.clip(linear, 0, 1) ** (1 / 2.2)).astype(np.float32)


def _unit(*xyz: float) -> np.ndarray:
    return np.array(xyz) / np.linalg.norm(xyz)


def _clip_near(corners: np.ndarray, shades: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangles cut at the plane z = NEAR: what is left of one is none, itself, one or two triangles."""
    inside = corners[..., 2] > NEAR
    count = inside.sum(-1)
    if (count == 3).all():
        return corners, shades, owner
    both = np.concatenate([corners, shades], axis=-1)  # cut position and colour alike
    whole = count == 3
    parts, owners = [both[whole]], [owner[whole]]
    for lone_is_inside in (True, False):
        cut = count == (1 if lone_is_inside else 2)
        lone = np.argmax(inside[cut] == lone_is_inside, axis=-1)  # the corner that is alone on its side
        turned = (lone[:, None] + np.arange(3)) % 3  # turn it to the front, keeping the orientation
        a, b, c = np.moveaxis(np.take_along_axis(both[cut], turned[..., None], axis=1), 1, 0)
        ab, ac = (a + (NEAR - a[:, 2:3]) / (other[:, 2:3] - a[:, 2:3]) * (other - a) for other in (b, c))
        pieces = [(a, ab, ac)] if lone_is_inside else [(ab, b, c), (ab, c, ac)]
        parts += [np.stack(piece, axis=1) for piece in pieces]
        owners += [owner[cut]] * len(pieces)
    both = np.concatenate(parts)
    return both[..., :3], both[..., 3:].astype(np.float32), np.concatenate(owners)


def _project(points: Float[np.ndarray, "F 3 3"], camera: Camera) -> Float[np.ndarray, "F 3 2"]:
    """Pixels of points that are in camera space already."""
    K = camera.K.numpy(force=True).astype(np.float64)
    xy = points[..., :2] / points[..., 2:]
    if camera.distortion is not None:
        # The lens polynomial holds inside the picture only: far outside it would fold points back into view, so there
        # the distortion of the picture's surroundings goes on.
        height, width = camera.size
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) - K[:2, 2]
        reach = 1.2 * np.linalg.norm(corners @ np.linalg.inv(K[:2, :2]).T, axis=-1).max()
        shrink = np.minimum(1, reach / np.maximum(np.linalg.norm(xy, axis=-1, keepdims=True), 1e-12))
        xy = distort(torch.from_numpy(xy * shrink), camera.distortion.cpu().double()).numpy() / shrink
    return xy @ K[:2, :2].T + K[:2, 2]


# From triangles to samples ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Faces:
    """Triangles on the grid of samples, with everything that is linear over the screen as (value at `origin`, slope in
    x, slope in y)."""

    low: np.ndarray  # (F, 2) first sample column and row of the bounding box; may lie outside the picture
    high: np.ndarray  # (F, 2) last ones; below `low` where no sample is inside
    first: np.ndarray  # (F, 3) barycentric coordinate of corner 0; slopes and value at `low`
    second: np.ndarray  # (F, 3) the same of corner 1
    inverse: np.ndarray  # (F, 3) inverse depth, 1/m
    corner_inverse: np.ndarray  # (F, 3) inverse depth of the corners
    nearest: np.ndarray  # (F,) largest of the three
    farthest: np.ndarray  # (F,) smallest of the three

    @staticmethod
    def prepare(xy: Float[np.ndarray, "F 3 2"], inverse_depth: Float[np.ndarray, "F 3"]) -> "_Faces":
        limit = 1 << 30  # coordinates of triangles cut close to the camera may be huge
        a, b, c = xy.clip(-limit, limit).swapaxes(0, 1)
        low = np.ceil(np.minimum(np.minimum(a, b), c) - ROUNDING).astype(np.int64)
        high = np.floor(np.maximum(np.maximum(a, b), c) + ROUNDING).astype(np.int64)
        a, b, c = xy[:, 0] - low, xy[:, 1] - low, xy[:, 2] - low
        ab, ac, bc = b - a, c - a, c - b
        area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
        flat = np.abs(area) < 1e-9
        high[flat] = low[flat] - 1
        area = np.where(flat, 1, area)
        first = np.stack([bc[:, 0] * -b[:, 1] + bc[:, 1] * b[:, 0], -bc[:, 1], bc[:, 0]], axis=-1) / area[:, None]
        second = np.stack([ac[:, 1] * -a[:, 0] + ac[:, 0] * a[:, 1], ac[:, 1], -ac[:, 0]], axis=-1) / area[:, None]
        wa, wb, wc = (inverse_depth[:, k, None] for k in range(3))
        inverse = wc * np.array([1.0, 0, 0]) + (wa - wc) * first + (wb - wc) * second
        nearest = np.maximum(np.maximum(wa, wb), wc).astype(np.float32)[:, 0]
        farthest = np.minimum(np.minimum(wa, wb), wc).astype(np.float32)[:, 0]
        return _Faces(low, high, first, second, inverse, inverse_depth, nearest, farthest)

    def weights(self, face: np.ndarray, column: np.ndarray, row: np.ndarray) -> Float[np.ndarray, "3 N"]:
        """Weights of the three corners at samples of faces, true in perspective."""
        low, first, second = (each.take(face, 0).T for each in (self.low, self.first, self.second))
        across, down = column - low[0], row - low[1]
        weights = np.empty((3, len(face)), np.float32)
        weights[0] = first[0] + first[1] * across + first[2] * down
        weights[1] = second[0] + second[1] * across + second[2] * down
        weights[2] = 1 - weights[0] - weights[1]
        weights = np.maximum(weights, 0) * self.corner_inverse.take(face, 0).T
        return weights / (weights[0] + weights[1] + weights[2])


def _visible(faces: _Faces, top: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The covered samples of `size[0]` rows from `top` on: row from `top`, column, face in front, inverse depth."""
    height, width = size
    low = np.maximum(faces.low - (0, top), 0)
    high = np.minimum(faces.high - (0, top), (width - 1, height - 1))
    extent = high - low + 1
    seen = np.flatnonzero((extent[:, 0] > 0) & (extent[:, 1] > 0))
    # Small triangles are handled in boxes a little larger than themselves, so the buffer has a margin for the rest.
    stride = width + int(BINS[-1])
    buffer = np.zeros((height + BINS[-1]) * stride, np.uint64)
    bins = np.searchsorted(BINS, extent[seen])
    group = bins[:, 0] * (len(BINS) + 1) + bins[:, 1]
    order = np.argsort(group, kind="stable")
    for members in np.split(seen[order], np.flatnonzero(np.diff(group[order])) + 1) if len(seen) else []:
        box = extent[members[0]]
        small = (box <= BINS[-1]).all()
        if small:
            box = BINS[np.searchsorted(BINS, box)]
        step = max(1, BATCH // int(box.prod())) if small else 1
        for start in range(0, len(members), step):
            batch = members[start : start + step]
            _rasterise(faces, batch, low[batch], box if small else extent[batch[0]], top, stride, buffer)
    place = np.flatnonzero(buffer)
    row, column = np.divmod(place, stride)
    shown = (row < height) & (column < width)
    return row[shown], column[shown], *_unkey(buffer[place[shown]])


def _rasterise(
    faces: _Faces, batch: np.ndarray, low: np.ndarray, box: np.ndarray, top: int, stride: int, buffer: np.ndarray
) -> None:
    """Put the samples of a batch of triangles, each in a box of `box` (width, height) samples from `low`, into the
    z-buffer."""
    # Single precision is exact enough over the few samples of a small box.
    kind = np.float32 if max(box) <= BINS[-1] else np.float64
    x, y = np.arange(box[0], dtype=kind), np.arange(box[1], dtype=kind)
    start = low + np.array([0, top]) - faces.low[batch]  # not 0 where the picture's edge cut the bounding box

    def plane(linear: np.ndarray) -> np.ndarray:
        value, dx, dy = linear.take(batch, 0).T
        value = value + dx * start[:, 0] + dy * start[:, 1]
        value, dx, dy = (each.astype(kind)[:, None] for each in (value, dx, dy))
        return (value + dy * y)[:, :, None] + (dx * x)[:, None, :]

    first, second = plane(faces.first), plane(faces.second)
    inside = (first >= -ROUNDING) & (second >= -ROUNDING)
    first += second
    inside &= first <= 1 + ROUNDING
    hit = np.flatnonzero(inside)
    member, cell = np.divmod(hit, box[0] * box[1])
    corner, offset = low[:, 1] * stride + low[:, 0], np.arange(box[1])[:, None] * stride + np.arange(box[0])
    place = corner.take(member) + offset.take(cell)
    number = batch.take(member)
    # A sliver's plane is steep: keep its inverse depth between those of its corners.
    inverse = plane(faces.inverse).take(hit).astype(np.float32)
    inverse = np.clip(inverse, faces.farthest.take(number), faces.nearest.take(number))
    np.maximum.at(buffer, place, _key(inverse, number))


def _key(inverse_depth: np.ndarray, face: np.ndarray) -> np.ndarray:
    """A number in the order of inverse depth (positive floats sort as their bits do) that also names the face."""
    return inverse_depth.view(np.uint32).astype(np.uint64) << np.uint64(32) | face.astype(np.uint64)


def _unkey(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Face and inverse depth of keys."""
    return (key & np.uint64(0xFFFFFFFF)).astype(np.int64), (key >> np.uint64(32)).astype(np.uint32).view(np.float32)


def _nearest(
    pixel: np.ndarray, face: np.ndarray, inverse_depth: np.ndarray, pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per pixel the face in front and its inverse depth; 0 where nothing is.

    Inverse depth is averaged over the samples within 2 % of the nearest: at the pixel's centre this is exact for a
    plane, and it does not mix a person with the one behind.
    """
    best = np.zeros(pixels, np.uint64)
    np.maximum.at(best, pixel, _key(inverse_depth, face))
    front, nearest = _unkey(best)
    same = inverse_depth > 0.98 * nearest[pixel]
    pixel = pixel[same]
    total = np.bincount(pixel, inverse_depth[same], minlength=pixels)
    return front, total / np.maximum(np.bincount(pixel, minlength=pixels), 1)
