"""The generated set (--synthetic): ten shapes at random places, in random colours, over noise.

A shape is light on dark as often as the reverse, and anywhere: no single pixel tells the classes
apart. So a CNN, which looks for a shape everywhere, does much better than an MLP. All arithmetic is on
integers, so every machine makes the same pictures.
"""

import numpy as np

SHAPES = ("rows", "columns", "rising", "falling", "checks", "dots", "ring", "cross", "frame",
          "triangle")
SHAPE_SIZE = 10


def generate() -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8, 60 000 x 3 x 32 x 32, and labels, int64."""
    parts = [_shapes_on_noise(10_000, seed) for seed in range(6)]
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _shapes_on_noise(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    noise = np.frombuffer(random.bytes(count * 3072), np.uint8).reshape(count, 3, 32, 32) >> 3
    blocks = random.randint(0, 64, (count, 3, 8, 8), dtype=np.uint8)
    images = noise + blocks.repeat(4, axis=2).repeat(4, axis=3) + np.uint8(80)  # 80 to 174

    labels = random.randint(0, len(SHAPES), count)
    colours = random.randint(-64, 65, (count, 3, 1, 1)).astype(np.uint8)  # below 0: wraps, twice
    pictures, channels, rows, columns = np.ogrid[:count, :3, :SHAPE_SIZE, :SHAPE_SIZE]
    top, left = random.randint(0, 33 - SHAPE_SIZE, (2, count, 1, 1, 1))
    images[pictures, channels, top + rows, left + columns] += shapes()[labels][:, None] * colours
    return images, labels.astype(np.int64)


def shapes() -> np.ndarray:
    """The shapes as zeros and ones, 10 x 10 x 10, in the order of SHAPES."""
    y, x = np.mgrid[:SHAPE_SIZE, :SHAPE_SIZE]
    # twice the distance from the middle
    v, h = abs(2 * y - SHAPE_SIZE + 1), abs(2 * x - SHAPE_SIZE + 1)
    shapes = (y % 4 < 2, x % 4 < 2, (x + y) % 4 < 2, (x - y) % 4 < 2, x // 2 % 2 == y // 2 % 2,
              (x % 4 < 2) & (y % 4 < 2), (v**2 + h**2 >= 25) & (v**2 + h**2 < 100),
              np.minimum(v, h) < 4, np.maximum(v, h) >= 7, h <= y)
    return np.stack(shapes).astype(np.uint8)
