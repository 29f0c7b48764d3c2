"""One picture as 3 x 32 x 32 bytes, the same wherever it is read: to train on, or for --predict.

Its central square is scaled to 32 x 32 with antialiasing; 32x32 pixels stay as they are.
It is turned upright as its camera noted. Transparency shows a grey of 128, zero to a network.
Of 16 bits the upper eight count. 32-bit grey names no range: see `_deep_grey`.
The pixels are the same; a network's logits need not be to the last bit: for a picture alone other
kernels add up than for a batch of them (the MLP's differ by about 1e-7).
"""

import contextlib
from pathlib import Path

import numpy as np
import PIL

from store.files import UserError

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # of an image folder
MAX_PIXELS = 89_478_485  # Pillow's limit against decompression bombs; they take up to 1 GB
MAX_JPEG = 3 * MAX_PIXELS  # which is decoded at an eighth of its size
OLDEST_PILLOW = (10, 1)  # as in requirements.txt


def read_picture(path: Path, exact: bool = False) -> np.ndarray:
    """Read a picture of any size, or with `exact` one of 32x32, in one of FORMATS.

    A wrong size is refused by the header, before decoding. UserError if it cannot be read.
    """
    if tuple(map(int, PIL.__version__.split(".")[:2])) < OLDEST_PILLOW:
        raise UserError(f"Pillow {PIL.__version__} is too old to read pictures; install "
                        f"{'.'.join(map(str, OLDEST_PILLOW))} or newer: pip install -U pillow")
    try:
        if not path.is_file():  # a pipe would never end
            raise ValueError("it is a folder" if path.is_dir() else "there is no such file")
        with _open(path, exact) as image:
            width, height = image.size
            if exact and image.size != (32, 32):
                raise ValueError(f"it has {width}x{height} pixels; only 32x32 is taken: resize it")
            limit = MAX_JPEG if image.format == "JPEG" else MAX_PIXELS
            if width * height > limit:
                raise ValueError(f"its {width}x{height} pixels exceed the limit of {limit}")
            image.draft(None, (256, 256))
            return _pixels(image)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds on damaged bytes: all mean unreadable
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path} cannot be read as a picture ({reason})") from error


def _open(path: Path, exact: bool):
    from PIL import Image, UnidentifiedImageError
    from PIL.JpegImagePlugin import JpegImageFile

    with contextlib.suppress(SyntaxError):  # no JPEG; Image.open would call large ones bombs
        return JpegImageFile(path)
    Image.init()
    every = [name for name in Image.OPEN if name != "EPS"]  # for which Pillow runs Ghostscript
    try:
        return Image.open(path, formats=FORMATS if exact else every)
    except UnidentifiedImageError:
        names = f": {', '.join(FORMATS)}" if exact else ""
        raise ValueError(f"it is in no format that is known here{names}") from None


def _pixels(image) -> np.ndarray:
    from PIL import Image, ImageOps

    if image.mode[0] in "IF":
        image = _deep_grey(image)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    box = (left, top, left + side, top + side)  # cut and scaled in one: no copy of a long picture
    image = image if image.mode == mode else image.convert(mode)
    small = image.resize((32, 32), Image.Resampling.BICUBIC, box)
    with contextlib.suppress(Exception):  # a damaged note turns nothing
        small = ImageOps.exif_transpose(small)
    if mode == "RGBA":
        grey = Image.new("RGBA", (32, 32), (128, 128, 128, 255))
        small = Image.alpha_composite(grey, small).convert("RGB")
    return np.asarray(small).transpose(2, 0, 1)


def _deep_grey(image):
    """Grey of more than 8 bits, scaled: Pillow would cut it off at 255.

    White is 65535, or 4095 in a 12-bit file. 32-bit files do not tell: theirs is the first of
    1 (floats), 255, 65535 and 2^31 - 1 that is more than half of the largest value.
    """
    from PIL import Image, ImageOps

    values = np.array(image, np.float32)  # changed in place: a large picture takes 1 GB as it is
    np.nan_to_num(values, copy=False, posinf=0)
    tiff, largest = getattr(image, "tag_v2", {}), values.max()
    if image.mode == "F" and largest < 2:
        np.rint(np.multiply(values, 255, out=values), out=values)
    elif image.mode == "F" or image.mode == "I" and tiff:
        values /= 1 if largest < 2**9 else 2**8 if largest < 2**17 else 2**23
    else:
        values /= 2**4 if tiff.get(258) == (12,) else 2**8
    grey = Image.fromarray(values.clip(0, 255, out=values).astype(np.uint8))
    if tiff.get(262) == 0:  # white is zero
        grey = ImageOps.invert(grey)
    if (clear := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray((np.asarray(image) != clear).astype(np.uint8) * 255))
    grey.info = {key: image.info[key] for key in image.info if key != "transparency"}
    return grey
