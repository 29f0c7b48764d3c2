"""The generated set (--synthetic): ten shapes over blocks and noise, in random colours.

A shape lies anywhere, in any contrast, light on dark as often as the reverse: no single pixel
tells the classes apart. A CNN looks for a shape everywhere and does much better than an MLP.
All arithmetic is on integers, so every machine makes the same pictures.
"""

import numpy as np

SHAPES = ("rows", "columns", "rising", "falling", "checks",
          "dots", "ring", "cross", "frame", "triangle")
SHAPE_SIZE = 10


def generate() -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8, 60 000 x 3 x 32 x 32, and labels, int64."""
    parts = [_shapes_on_noise(10_000, seed) for seed in range(6)]
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _shapes_on_noise(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    noise = np.frombuffer(random.bytes(count * 3072), np.uint8) >> 3
    blocks = random.randint(0, 64, (count, 3, 8, 8), dtype=np.uint8)
    images = noise.reshape(count, 3, 32, 32) + np.uint8(80)
    images += blocks.repeat(4, axis=2).repeat(4, axis=3)  # 80 to 174 now

    labels = random.randint(0, len(SHAPES), count)
    colours = random.randint(-64, 65, (count, 3, 1, 1)).astype(np.uint8)  # below 0 they wrap, twice
    pictures, channels, rows, columns = np.ogrid[:count, :3, :SHAPE_SIZE, :SHAPE_SIZE]
    top, left = random.randint(0, 33 - SHAPE_SIZE, (2, count, 1, 1, 1))
    images[pictures, channels, top + rows, left + columns] += shapes()[labels][:, None] * colours
    return images, labels.astype(np.int64)


def shapes() -> np.ndarray:
    """The shapes as zeros and ones, 10 x 10 x 10, in the order of SHAPES."""
    y, x = np.mgrid[:SHAPE_SIZE, :SHAPE_SIZE]
    v, h = (abs(2 * side - SHAPE_SIZE + 1) for side in (y, x))  # twice the distance from the middle
    shapes = (y % 4 < 2, x % 4 < 2, (x + y) % 4 < 2, (x - y) % 4 < 2, x // 2 % 2 == y // 2 % 2,
              (x % 4 < 2) & (y % 4 < 2), (v**2 + h**2 >= 25) & (v**2 + h**2 < 100),
              np.minimum(v, h) < 4, np.maximum(v, h) >= 7, h <= y)
    return np.stack(shapes).astype(np.uint8)
