"""Photos from and to files, as (H, W, 3) arrays of 8-bit RGB the right way up, and what a file says about its lens."""

import math
import warnings
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError

from body3d.atomic import atomic
from body3d.errors import InputError

# Formats of photos only: Pillow's others include some that run a program (EPS) or hold no picture (HDF5).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF")
MIN_SIDE = 16  # pixels; nothing can be found in less
MAX_PIXELS = 178_000_000  # Pillow's own limit against small files that unpack to fill the memory
FILM_DIAGONAL = math.hypot(36, 24)  # mm

# What has to be done to the stored pixels, by EXIF orientation (the stored row 0 and column 0 are the scene's ...)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,  # top, right
    3: Image.Transpose.ROTATE_180,  # bottom, right
    4: Image.Transpose.FLIP_TOP_BOTTOM,  # bottom, left
    5: Image.Transpose.TRANSPOSE,  # left, top
    6: Image.Transpose.ROTATE_270,  # right, top
    7: Image.Transpose.TRANSVERSE,  # right, bottom
    8: Image.Transpose.ROTATE_90,  # left, bottom
}

_ON_ITS_SIDE = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)

# PNG: three times as fast as Pillow's default and hardly larger.
_SAVING = {"JPEG": {"quality": 95}, "PNG": {"compress_level": 3}}


def read_image(path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
    """The photo in `path` as 8-bit RGB, turned upright by its EXIF orientation.

    Greyscale, palette, CMYK (Adobe's inverted kind too) and YCbCr become RGB; transparency is laid on white; 16-bit
    values keep their high byte. What is not one photo is refused with an `InputError` that says why: no such file, a
    folder, no image, cut off, several frames, less than 16 pixels wide or high, more than 178 megapixels.
    """
    with _opened(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # an MPO holds previews and other eyes behind the photo itself
            raise InputError(f"{path} holds {frames} frames, not one photo: save the one that you want as PNG or JPEG")
        if min(image.size) < MIN_SIDE:
            raise InputError(f"{path} is only {image.width} x {image.height} pixels: {MIN_SIDE} each way are needed")
        turn = _UPRIGHT.get(_exif(image).get(ExifTags.Base.Orientation, 1))
        try:
            rgb = _to_rgb(image, path)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is damaged or cut off: {error}") from error
    return np.array(rgb if turn is None else rgb.transpose(turn))


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of what `read_image` gives, from the file's header. InputError for what is not an image."""
    with _opened(path) as image:
        lying = _UPRIGHT.get(_exif(image).get(ExifTags.Base.Orientation, 1)) in _ON_ITS_SIDE
        return (image.width, image.height) if lying else (image.height, image.width)


def write_image(path: str | Path, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write RGB to `path`, in the format of its suffix; the file is whole or not there."""
    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{path}: a picture is written as .png or .jpg, not {path.suffix or 'without a suffix'!r}")
    with atomic(path) as part:
        Image.fromarray(np.ascontiguousarray(image)).save(part, kind, **_SAVING.get(kind, {}))


def exif_focal_px(path: str | Path, size: tuple[int, int]) -> float | None:
    """The focal length in pixels of the photo in `path` when it is used at `size` (H, W), from its EXIF; None if the
    file does not tell.

    First choice is FocalLengthIn35mmFilm. Cameras state it so that the field of view over the *diagonal* is that of
    36 x 24 mm film (CIPA DCG-001), so focal = stated / 43.27 mm x diagonal in pixels; taking the width for 36 mm would
    be 4 % off for the 4:3 pictures of telephones. Else FocalLength and the sensor's pixels per length
    (FocalPlaneXResolution). Both hold for the picture that the camera stored (PixelXDimension x PixelYDimension): if
    the file was made smaller since, the focal length goes with it, whichever way up it is; if it was cropped (other
    proportions), what it shows of the stored picture is unknown and so is the focal length.
    """
    with _opened(path) as image:
        tags = _exif(image)
        detail = tags.get_ifd(ExifTags.IFD.Exif) if tags else {}
    across, down = (_positive(detail.get(tag)) for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight))
    short, long = sorted(size)
    stored_short, stored_long = sorted((across, down) if across and down else image.size)
    # A pixel lost to rounding is no crop.
    if abs(short - stored_short * long / stored_long) > max(2.0, 0.01 * short):
        return None

    film = _positive(detail.get(ExifTags.Base.FocalLengthIn35mmFilm))
    lens = _positive(detail.get(ExifTags.Base.FocalLength))
    density = _positive(detail.get(ExifTags.Base.FocalPlaneXResolution))
    unit = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}.get(detail.get(ExifTags.Base.FocalPlaneResolutionUnit, 2))  # mm
    if film:
        focal = film / FILM_DIAGONAL * math.hypot(*size)
    elif lens and density and unit:
        focal = lens * density / unit * long / stored_long
    else:
        return None
    return focal if 0.2 < focal / long < 50 else None  # outside of what lenses are: a broken tag


def warp_crop(
    image: UInt8[np.ndarray, "H W 3"], matrix: Float[np.ndarray, "2 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """The crop of `size` (h, w) whose pixel `matrix @ (x, y, 1)` shows the image at pixel (x, y); black outside it.

    Pixel centres are at integers on both sides. Sampling is bilinear; where the crop shrinks the image more than twice,
    the image is averaged first, so that nothing flickers through the gaps between samples.
    """
    matrix = np.asarray(matrix, np.float64)
    shrink = math.floor(1 / math.sqrt(max(abs(np.linalg.det(matrix[:, :2])), 1e-12)))
    if shrink >= 2:
        height, width = image.shape[:2]
        small = (max(1, width // shrink), max(1, height // shrink))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        # A pixel p of the small image shows the image at (p + 0.5) * scale - 0.5.
        scale = np.array([width / small[0], height / small[1]])
        matrix = np.column_stack([matrix[:, :2] * scale, matrix[:, :2] @ (0.5 * scale - 0.5) + matrix[:, 2]])
    return cv2.warpAffine(image, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR)


@contextmanager
def _opened(path: str | Path):
    """The image file, its pixels not read yet."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name the image files in it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata: limits are ours
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        raise InputError(f"{path} is larger than {MAX_PIXELS / 1e6:.0f} megapixels: make it smaller first") from None
    except UnidentifiedImageError:
        hint = " (HEIC: save it as JPEG first)" if path.suffix.lower() in (".heic", ".heif") else ""
        raise InputError(f"{path} is not an image that can be read: JPEG, PNG, WebP, TIFF and BMP can{hint}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"{path} is larger than {MAX_PIXELS / 1e6:.0f} megapixels: make it smaller first")
        yield image


def _exif(image: Image.Image) -> Image.Exif:
    """The file's EXIF; empty where there is none or it is broken, which is no reason to refuse a good picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif = image.getexif()
            exif.get_ifd(ExifTags.IFD.Exif)
            return exif
    except Exception:  # the parsers of the many formats raise whatever comes
        return Image.Exif()


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """Any mode as RGB, pixels read."""
    if image.mode.startswith("I"):  # more than 8 bits of grey
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise InputError(f"{path} stores greys of more than 16 bits: save it as 8-bit PNG first")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise InputError(f"{path} stores floating-point values without a known white: save it as 8-bit PNG first")
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for Adobe's kind, which stores the inverse
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def _positive(value) -> float | None:
    """An EXIF number that means something: rationals may be 0/0, and 0 stands for unknown."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) and number > 0 else None
