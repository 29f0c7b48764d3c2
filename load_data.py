"""The data set as tensors: 40 000 images to train, 10 000 to validate, 10 000 to test.

    data = load_cifar_4d()                 # CIFAR-10, downloaded to data/ the first time
    data = load_cifar_4d("my_pictures")    # train/<class>/..., test/<class>/...: 32x32 pictures
    data = load_cifar_4d(synthetic=True)   # generated, if there is no network
    images, labels = data.train            # 40 000 x 3 x 32 x 32 bytes; 40 000 numbers from 0 to 9
    x = normalize(images[:128])            # (x - 128) / 255, float32

Images stay bytes, a quarter of their size as float32, so a whole data set fits on the device.
store/images.py makes batches of it; store/cache.py finds, checks and decodes the files.
"""

from pathlib import Path

from store.cache import load_folder
from store.dataset import Data, Split, divide, normalize
from store.files import UserError
from store.official import DATA_DIR
from store.synthetic import SHAPES, generate

__all__ = ["DATA_DIR", "Data", "Split", "load_cifar_2d", "load_cifar_4d", "normalize"]


def load_cifar_2d(data_dir: Path | str | None = None, synthetic: bool = False) -> Data:
    """Load images as vectors, N x 3072, for the MLP."""
    data = load_cifar_4d(data_dir, synthetic)
    train, val, test = (Split(images.flatten(1), labels) for images, labels in data[:3])
    return data._replace(train=train, val=val, test=test)


def load_cifar_4d(data_dir: Path | str | None = None, synthetic: bool = False) -> Data:
    """Load images of shape N x 3 x 32 x 32, for the CNN.

    `data_dir` is an image folder (train/<class>/..., test/<class>/...), or has the official files;
    an empty one gets them downloaded. The default is data/ beside this file.
    `synthetic` takes the generated set instead.
    Raises UserError for data that cannot be had, read or trusted.
    """
    folder = DATA_DIR if data_dir is None else Path(data_dir)
    try:
        if synthetic:
            return divide(*generate(), 50_000, SHAPES, "synthetic")
        return load_folder(folder)
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror or error}"
        raise UserError(f"cannot load the data: {reason}; fix this or choose another "
                        "folder") from error
    except MemoryError as error:
        raise UserError("there is not enough memory to load the data; free some") from error
