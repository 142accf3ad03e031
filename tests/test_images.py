"""Every kind of photo file is written here by the test itself and must come back with the values that went in."""

import math
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from body3d.errors import InputError
from body3d.images import exif_focal_px, image_size, read_image, warp_crop, write_image

HEIGHT, WIDTH = 24, 40


@pytest.fixture
def picture() -> np.ndarray:
    """A smooth RGB picture without any symmetry (smooth, so that JPEG keeps it)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] / np.array([HEIGHT, WIDTH])[:, None, None]
    return np.rint(255 * np.stack([x, y, 0.5 * x + 0.3 * y**2], axis=-1)).astype(np.uint8)


def differs(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.uint8
    return np.abs(a.astype(int) - b).max()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_lossless_formats_round_trip(tmp_path, picture, suffix):
    write_image(tmp_path / f"a{suffix}", picture)
    assert differs(read_image(tmp_path / f"a{suffix}"), picture) == 0


def test_jpeg_round_trip(tmp_path, picture):
    write_image(tmp_path / "a.jpg", picture)
    assert differs(read_image(tmp_path / "a.jpg"), picture) <= 8


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [  # how a camera that is held that way stores the upright picture (EXIF 2.3, 4.6.4)
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),  # row 0 is the left side, column 0 the top
        (6, lambda a: a.transpose(1, 0, 2)[::-1]),  # row 0 is the right side, column 0 the top
        (7, lambda a: a.transpose(1, 0, 2)[::-1, ::-1]),  # row 0 is the right side, column 0 the bottom
        (8, lambda a: a.transpose(1, 0, 2)[:, ::-1]),  # row 0 is the left side, column 0 the bottom
    ],
)
def test_exif_orientation(tmp_path, picture, orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.jpg"):
        Image.fromarray(np.ascontiguousarray(stored(picture))).save(tmp_path / name, exif=exif)
        assert image_size(tmp_path / name) == (HEIGHT, WIDTH)
    assert differs(read_image(tmp_path / "a.png"), picture) == 0
    Image.fromarray(np.ascontiguousarray(stored(picture))).save(tmp_path / "plain.jpg")
    assert differs(read_image(tmp_path / "a.jpg"), picture) <= 25  # chroma blocks lie differently


def test_broken_exif_does_not_spoil_a_good_photo(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12 rubbish")
    assert differs(read_image(tmp_path / "a.jpg"), picture) <= 25
    assert exif_focal_px(tmp_path / "a.jpg", (HEIGHT, WIDTH)) is None


def test_greyscale_and_bilevel(tmp_path, picture):
    grey = picture[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert differs(read_image(tmp_path / "a.png"), np.repeat(grey[..., None], 3, -1)) == 0
    Image.fromarray(grey > 127).save(tmp_path / "b.png")
    black_white = np.where(grey > 127, 255, 0).astype(np.uint8)
    assert differs(read_image(tmp_path / "b.png"), np.repeat(black_white[..., None], 3, -1)) == 0


def test_palette(tmp_path):
    index = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 5).astype(np.uint8)
    colours = np.array([[255, 0, 0], [0, 200, 10], [7, 8, 9], [250, 251, 252], [0, 0, 90]], np.uint8)
    image = Image.frombytes("P", (WIDTH, HEIGHT), index.tobytes())
    image.putpalette(colours.tobytes())
    for name in ("a.png", "a.gif"):
        image.save(tmp_path / name)
        assert differs(read_image(tmp_path / name), colours[index]) == 0


def test_transparency_is_laid_on_white(tmp_path, picture):
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:8], alpha[8:16] = 0, 128
    Image.fromarray(np.dstack([picture, alpha])).save(tmp_path / "a.png")
    expected = picture.astype(float) * alpha[..., None] / 255 + 255 - alpha[..., None].astype(float)
    assert differs(read_image(tmp_path / "a.png"), np.rint(expected).astype(np.uint8)) <= 1
    assert (read_image(tmp_path / "a.png")[:8] == 255).all()
    Image.fromarray(np.dstack([picture[..., 0], alpha])).save(tmp_path / "b.png")  # grey with alpha
    assert differs(read_image(tmp_path / "b.png"), np.rint(expected[..., [0, 0, 0]]).astype(np.uint8)) <= 1


def test_sixteen_bits(tmp_path, picture):
    """8-bit v as 16-bit 257 v is the same brightness; OpenCV writes the files."""
    wide = picture.astype(np.uint16) * 257
    assert cv2.imwrite(str(tmp_path / "rgb.png"), wide[..., ::-1])
    assert cv2.imwrite(str(tmp_path / "grey.png"), wide[..., 0])
    assert cv2.imwrite(str(tmp_path / "grey.tif"), wide[..., 0])
    assert differs(read_image(tmp_path / "rgb.png"), picture) == 0
    for name in ("grey.png", "grey.tif"):
        assert differs(read_image(tmp_path / name), picture[..., [0, 0, 0]]) == 0


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_jpeg(tmp_path, adobe):
    """A plain patch of each colour; Adobe's files hold 255 - ink and say so in a marker, others hold the ink."""
    colours = np.array([[230, 20, 30], [20, 200, 40], [30, 40, 220], [128, 128, 128], [250, 250, 250]], np.uint8)
    rgb = np.repeat(np.repeat(colours[None], 16, 0), 16, 1)
    ink = np.dstack([255 - rgb, np.zeros(rgb.shape[:2], np.uint8)])
    Image.frombytes("CMYK", ink.shape[1::-1], ink.tobytes()).save(tmp_path / "a.jpg", quality=100)
    data = (tmp_path / "a.jpg").read_bytes()
    assert b"Adobe" in data  # Pillow writes Adobe's kind
    if not adobe:  # the same ink stored as it is: cut the marker out and store the inverse
        Image.frombytes("CMYK", ink.shape[1::-1], (255 - ink).tobytes()).save(tmp_path / "a.jpg", quality=100)
        data = (tmp_path / "a.jpg").read_bytes()
        at = data.index(b"\xff\xee")
        length = struct.unpack(">H", data[at + 2 : at + 4])[0]
        (tmp_path / "a.jpg").write_bytes(data[:at] + data[at + 2 + length :])
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.mode == "CMYK"
    assert differs(read_image(tmp_path / "a.jpg"), rgb) <= 6


def test_first_picture_of_a_stereo_or_preview_file(tmp_path, picture):
    """Telephones write JPEGs with further pictures behind the photo (MPO); that is not a film."""
    Image.fromarray(picture).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(255 - picture)]
    )
    assert differs(read_image(tmp_path / "a.jpg"), picture) <= 25


def test_what_is_not_one_photo_is_refused(tmp_path, picture):
    def refused(name: str, *words: str) -> None:
        with pytest.raises(InputError) as caught:
            read_image(tmp_path / name)
        text = str(caught.value)
        assert "\n" not in text
        assert name in text
        for word in words:
            assert word in text

    refused("missing.jpg", "no such file")
    (tmp_path / "folder.jpg").mkdir()
    refused("folder.jpg", "folder")
    (tmp_path / "text.jpg").write_text("This is not a picture.\n" * 50)
    refused("text.jpg", "not an image")
    (tmp_path / "empty.jpg").write_bytes(b"")
    refused("empty.jpg", "not an image")
    (tmp_path / "evil.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n")
    refused("evil.jpg", "not an image")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    refused("photo.heic", "save it as JPEG")
    Image.fromarray(picture[:1, :1]).save(tmp_path / "tiny.png")
    refused("tiny.png", "1 x 1")
    frames = [Image.fromarray(picture), Image.fromarray(255 - picture)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    refused("film.gif", "2 frames")

    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    for name in ("cut.jpg", "cut.png"):
        write_image(tmp_path / name, noise)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        refused(name, "cut off")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """A PNG of 40,000 x 40,000 black pixels whose file is small."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (13_400, 40_000):  # just above the limit, far above
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))))
        with pytest.raises(InputError, match="megapixels"):
            read_image(tmp_path / "bomb.png")


def test_writing_fails_whole(tmp_path, picture):
    with pytest.raises(InputError, match="png"):
        write_image(tmp_path / "a.xyz", picture)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_image(tmp_path / "file" / "a.png", picture)
    assert "\n" not in str(caught.value)
    write_image(tmp_path / "new" / "deep" / "a.png", picture)
    with pytest.raises(TypeError):
        write_image(tmp_path / "new" / "deep" / "a.png", picture.astype(complex))
    assert [p.name for p in (tmp_path / "new" / "deep").iterdir()] == ["a.png"]
    assert differs(read_image(tmp_path / "new" / "deep" / "a.png"), picture) == 0


# ---- focal length ---------------------------------------------------------------------------------------------------


def with_exif(path, size: tuple[int, int], orientation: int = 1, **tags) -> None:
    """A JPEG of `size` (H, W) with tags of the Exif part by number."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769).update({int(name[1:], 16): value for name, value in tags.items()})
    Image.new("RGB", size[::-1]).save(path, exif=exif)


def test_focal_length_in_35_mm_counts_over_the_diagonal(tmp_path):
    """A 26 mm equivalent telephone at 4032 x 3024: the field of view over the diagonal is that of 26 mm on film."""
    with_exif(tmp_path / "a.jpg", (300, 400), tA405=26, tA002=4032, tA003=3024)
    for size in ((3024, 4032), (4032, 3024), (300, 400)):  # also upright and made smaller
        focal = exif_focal_px(tmp_path / "a.jpg", size)
        seen = 2 * math.atan(math.hypot(*size) / 2 / focal)
        assert seen == pytest.approx(2 * math.atan(math.hypot(36, 24) / 2 / 26), rel=1e-9)
    # 3:2 is where counting by the width agrees.
    with_exif(tmp_path / "b.jpg", (200, 300), tA405=50)
    assert exif_focal_px(tmp_path / "b.jpg", (200, 300)) == pytest.approx(300 * 50 / 36)


def test_focal_length_from_the_sensor(tmp_path):
    """A 22.2 mm wide sensor with 5184 pixels across, 35 mm lens: 35 x 5184 / 22.2 = 8172.97 px."""
    per_inch = 5184 / (22.2 / 25.4)
    tags = {"t920A": 35.0, "tA20E": per_inch, "tA20F": per_inch, "tA210": 2, "tA002": 5184, "tA003": 3456}
    with_exif(tmp_path / "a.jpg", (3456, 5184), **tags)
    assert exif_focal_px(tmp_path / "a.jpg", (3456, 5184)) == pytest.approx(8172.97, abs=0.01)
    # Half the size, and held upright: the pixels of the stored picture stay what they were.
    with_exif(tmp_path / "b.jpg", (1728, 2592), orientation=6, **tags)
    assert exif_focal_px(tmp_path / "b.jpg", (2592, 1728)) == pytest.approx(8172.97 / 2, abs=0.01)
    # Centimetres.
    with_exif(tmp_path / "c.jpg", (3456, 5184), **(tags | {"tA20E": per_inch / 2.54, "tA210": 3}))
    assert exif_focal_px(tmp_path / "c.jpg", (3456, 5184)) == pytest.approx(8172.97, abs=0.01)


def test_focal_length_that_the_file_does_not_tell(tmp_path, picture):
    write_image(tmp_path / "none.png", picture)
    assert exif_focal_px(tmp_path / "none.png", (HEIGHT, WIDTH)) is None
    with_exif(tmp_path / "zero.jpg", (300, 400), tA405=0, t920A=4.2)  # 0 is "unknown", and no sensor size
    assert exif_focal_px(tmp_path / "zero.jpg", (300, 400)) is None
    with_exif(tmp_path / "crop.jpg", (300, 300), tA405=26, tA002=4032, tA003=3024)
    assert exif_focal_px(tmp_path / "crop.jpg", (300, 300)) is None
    with_exif(tmp_path / "absurd.jpg", (300, 400), tA405=60000)
    assert exif_focal_px(tmp_path / "absurd.jpg", (300, 400)) is None


# ---- crops ----------------------------------------------------------------------------------------------------------


def test_warp_crop_shift_and_identity(picture):
    assert differs(warp_crop(picture, np.eye(2, 3), (HEIGHT, WIDTH)), picture) == 0
    shifted = warp_crop(picture, np.array([[1.0, 0, -5], [0, 1, -3]]), (10, 12))
    assert differs(shifted, picture[3:13, 5:17]) == 0
    outside = warp_crop(picture, np.array([[1.0, 0, 4], [0, 1, 2]]), (10, 12))
    assert (outside[:2] == 0).all()
    assert (outside[:, :4] == 0).all()
    assert differs(outside[2:, 4:], picture[:8, :8]) == 0


@pytest.mark.parametrize("factor", [2.0, 0.5, 0.2, 1 / 7])
def test_warp_crop_keeps_places_at_every_scale(factor):
    """On a ramp, the crop's pixel p shows the brightness at (p + 0.5) / factor - 0.5: no shift by half a pixel."""
    y, x = np.mgrid[:210, :210]
    ramp = np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)
    shift = 0.5 * factor - 0.5
    size = round(210 * factor)
    crop = warp_crop(ramp, np.array([[factor, 0, shift], [0, factor, shift]]), (size, size)).astype(float)
    expected = (np.arange(size) + 0.5) / factor - 0.5
    inner = slice(2, -2)
    assert np.abs(crop[inner, inner, 0] - expected[inner]).max() <= 0.6
    assert np.abs(crop[inner, inner, 1] - expected[inner, None]).max() <= 0.6


def test_warp_crop_averages_when_it_shrinks():
    """A board of single black and white pixels becomes grey, not stripes."""
    board = np.repeat((np.indices((160, 160)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, -1)
    crop = warp_crop(board, np.array([[0.25, 0, -0.375], [0, 0.25, -0.375]]), (40, 40))
    assert np.abs(crop.astype(int) - 127.5).max() <= 2
