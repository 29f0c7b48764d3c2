"""One picture as 3 x 32 x 32 bytes."""

import warnings
from pathlib import Path

import numpy as np

from store.files import UserError

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # of an image folder


def read_small_picture(path: Path) -> np.ndarray:
    """A picture of 32x32 pixels; any other size is refused by its header, before decoding."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.size == (32, 32):
                return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise many kinds on damaged bytes: all mean unreadable
        raise UserError(f"{path} cannot be read as a 32x32 picture ({error}); "
                        "mend or remove it") from error
    raise UserError(f"{path} has {image.width}x{image.height} pixels; only 32x32 is taken, "
                    "so resize it")


def read_picture(path: Path) -> np.ndarray:
    """A picture of any size: its central square, scaled to 32 x 32 with antialiasing.

    Turned upright as its camera noted; what is transparent shows a grey of 128, zero to a network.
    Refuses what is larger than Pillow's limit against decompression bombs, 89 million pixels,
    which take up to 1 GB. A large JPEG is decoded at a fraction of its size, in a moment.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.init()
    formats = [name for name in Image.OPEN if name != "EPS"]  # for EPS Pillow runs Ghostscript
    try:
        if not path.is_file():  # a pipe would never end
            raise FileNotFoundError(0, "there is no such file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=formats) as image:
                image.draft(None, (256, 256))
                small = ImageOps.exif_transpose(_square(_eight_bits(image)).convert("RGBA"))
                grey = Image.new("RGBA", small.size, (128, 128, 128, 255))
                opaque = Image.alpha_composite(grey, small).convert("RGB")
                return np.asarray(opaque).transpose(2, 0, 1)
    except UnidentifiedImageError as error:
        raise UserError(f"argument --predict: {path} cannot be read as a picture "
                        "(it is in no format that is known here)") from error
    except Exception as error:  # decoders raise many kinds on damaged bytes: all mean unreadable
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"argument --predict: {path} cannot be read as a picture "
                        f"({reason})") from error


def _eight_bits(image):
    """The picture as RGB or RGBA. Pillow cuts 16-bit values off at 255: they are scaled first."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        image = image.convert("L")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which would copy it


def _square(image):
    """The central square, 32 x 32. One call cuts and scales: no copy of a very long picture."""
    from PIL import Image

    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    box = (left, top, left + side, top + side)
    return image.resize((32, 32), Image.Resampling.BICUBIC, box=box)
