"""One picture: the same pixels wherever it is read, and the rule by which they come about."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from store import pictures
from store.files import UserError
from store.pictures import read_picture

RAMP = np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))  # 0 to 248, dark on the left
CLEAR = np.where(RAMP == 80, 128, RAMP)  # the same, where 80 is transparent


def png(depth: int, colour: int, rows: np.ndarray, *chunks) -> bytes:
    def chunk(kind, body):
        sum_of_it = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + sum_of_it

    header = struct.pack(">IIBBBBB", 32, 32, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")])


def tiff(values: np.ndarray | bytes, bits: int, kind: int = 1, white_is_zero=False) -> bytes:
    """`kind` 1 for whole numbers, 2 for signed ones, 3 for floats."""
    data = values if isinstance(values, bytes) else values.tobytes()
    tags = [(256, 32), (257, 32), (258, bits), (259, 1), (262, int(not white_is_zero)), (273, 8),
            (277, 1), (278, 32), (279, len(data)), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (b"II*\0" + struct.pack("<I", 8 + len(data)) + data
            + struct.pack("<H", len(tags)) + entries + bytes(4))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def twelve_bits(values: np.ndarray) -> bytes:
    a, b = values.reshape(-1, 2).astype(int).T
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()


def grey_alpha(alpha: int) -> Image.Image:
    image = Image.fromarray(RAMP)
    image.putalpha(Image.new("L", (32, 32), alpha))
    return image


def noted(orientation: int) -> Image.Exif:
    note = Image.Exif()
    note[0x0112] = orientation
    return note


DEEP = RAMP.astype(np.uint16) * 257
DEEP_BYTES = DEEP.astype(">u2")
UNIT = (RAMP / 255).astype(np.float32)
PALETTE = np.arange(256, dtype=np.uint8).repeat(3).tobytes()
COLOUR = Image.fromarray(RAMP).convert("RGB")
KINDS = {  # a file, and its grey
    "8 bits": (png(8, 0, RAMP), RAMP),
    "colour": (png(8, 2, RAMP.repeat(3, 1)), RAMP),
    "16 bits": (png(16, 0, DEEP_BYTES), RAMP),
    "16 bits of colour": (png(16, 2, DEEP_BYTES.repeat(3, 1)), RAMP),
    "16 bits, a clear value": (png(16, 0, DEEP_BYTES, (b"tRNS", b"PP")), CLEAR),
    "a clear value": (png(8, 0, RAMP, (b"tRNS", b"\0P")), CLEAR),  # P is 80
    "a clear colour": (png(8, 2, RAMP.repeat(3, 1), (b"tRNS", b"\0P\0P\0P")), CLEAR),
    "a clear palette": (png(8, 3, RAMP, (b"PLTE", PALETTE),
                            (b"tRNS", bytes([255] * 80 + [0] + [255] * 175))), CLEAR),
    "opaque": (saved(grey_alpha(255), "png"), RAMP),
    "transparent": (saved(grey_alpha(0), "png"), np.full_like(RAMP, 128)),
    "transparent web": (saved(grey_alpha(0).convert("RGBA"), "webp", lossless=True),
                        np.full_like(RAMP, 128)),
    "16-bit pgm": (b"P5 32 32 65535\n" + DEEP_BYTES.tobytes(), RAMP),
    "10-bit pgm": (b"P5 32 32 1023\n" + (DEEP // 257 * 4 + 3).astype(">u2").tobytes(), RAMP),
    "tiff": (tiff(RAMP, 8), RAMP),
    "tiff, white is 0": (tiff(RAMP, 8, white_is_zero=True), 255 - RAMP),
    "12-bit tiff": (tiff(twelve_bits(RAMP.astype(np.uint16) * 16), 12), RAMP),
    "16-bit tiff": (tiff(DEEP, 16), RAMP),
    "16-bit tiff, white is 0": (tiff(DEEP, 16, white_is_zero=True), 255 - RAMP),
    "signed tiff to 255": (tiff(RAMP.astype(np.int16), 16, 2), RAMP),
    "32-bit tiff to 255": (tiff(RAMP.astype(np.int32), 32, 2), RAMP),
    "32-bit tiff to 65535": (tiff(RAMP.astype(np.int32) * 257, 32, 2), RAMP),
    "32-bit tiff": (tiff(RAMP.astype(np.int32) << 23, 32, 2), RAMP),
    "float tiff to 1": (tiff(UNIT, 32, 3), RAMP),
    "float tiff over 1": (tiff(UNIT * 1.25, 32, 3), (RAMP * 1.25).round().clip(0, 255)),
    "float tiff to 255": (tiff(RAMP.astype(np.float32), 32, 3), RAMP),
    "float tiff to 65535": (tiff(DEEP.astype(np.float32), 32, 3), RAMP),
    "float tiff, not all numbers": (
        tiff(np.select([RAMP == 80, RAMP == 88], [np.nan, np.inf], UNIT).astype(np.float32), 32, 3),
        np.where((RAMP == 80) | (RAMP == 88), 0, RAMP)),
    "turned": (saved(Image.fromarray(RAMP), "png", exif=noted(6)), np.rot90(RAMP, -1)),
    "turned tiff": (saved(Image.fromarray(RAMP), "tiff", exif=noted(6)), np.rot90(RAMP, -1)),
    "turned web": (saved(COLOUR, "webp", lossless=True, exif=noted(6).tobytes()),
                   np.rot90(RAMP, -1)),
    "turned, 16 bits": (saved(Image.fromarray(DEEP), "png", exif=noted(6)), np.rot90(RAMP, -1)),
    "mirrored": (saved(Image.fromarray(RAMP), "png", exif=noted(2)), RAMP[:, ::-1]),
    "a wrong note": (saved(Image.fromarray(RAMP), "png", exif=noted(99)), RAMP),
    "a damaged note": (saved(Image.fromarray(RAMP), "png", exif=b"Exif\0\0MM\0*\xff\xff"), RAMP),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_the_same_to_train_on_and_to_predict(kind, tmp_path):
    content, grey = KINDS[kind]
    (tmp_path / "picture").write_bytes(content)
    for exact in (False, True):
        pixels = read_picture(tmp_path / "picture", exact)
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, np.broadcast_to(grey, (3, 32, 32)))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_photograph_of_108_megapixels_is_read_and_a_bomb_is_not(progressive, tmp_path):
    Image.new("L", (12_000, 9_000), 200).save(tmp_path / "a.jpg", progressive=progressive)
    assert (abs(read_picture(tmp_path / "a.jpg").astype(int) - 200) <= 1).all()
    with pytest.raises(UserError, match="it has 12000x9000 pixels; only 32x32 is taken"):
        read_picture(tmp_path / "a.jpg", exact=True)


def test_a_jpeg_beyond_its_own_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    content = bytearray(saved(Image.new("L", (16, 16)), "jpeg"))
    place = content.index(b"\xff\xc0") + 5
    content[place:place + 4] = struct.pack(">HH", 65_000, 65_000)
    (tmp_path / "a.jpg").write_bytes(content)
    monkeypatch.setattr(pictures, "_pixels", None)
    with pytest.raises(UserError, match="its 65000x65000 pixels exceed the limit"):
        read_picture(tmp_path / "a.jpg")


def test_no_memory_is_no_verdict_on_a_picture(tmp_path, monkeypatch):
    def fail(image):
        raise MemoryError

    monkeypatch.setattr(pictures, "_pixels", fail)
    (tmp_path / "a.png").write_bytes(KINDS["8 bits"][0])
    with pytest.raises(MemoryError):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("version, right", [("9.5.0", False), ("10.0.1", False), ("10.1.0", True)])
def test_an_old_pillow_is_named_instead_of_the_picture(version, right, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures.PIL, "__version__", version)
    (tmp_path / "a.png").write_bytes(KINDS["8 bits"][0])
    if right:
        read_picture(tmp_path / "a.png")
    else:
        with pytest.raises(UserError, match=f"^Pillow {version} is too old.*10.1 or newer"):
            read_picture(tmp_path / "a.png")
