"""Batch normalization, ReLU, dropout and MaxPool of both networks, in Triton kernels.

A CNN's x has shape (N, C, H, W) in channels_last order: the C values of a pixel lie side by side.
As in fast/blocks.py, x is read once forward, for statistics and pooling, and once backward; all
else touches the quarter that MaxPool keeps. An MLP's x, (N, C), is small: one program takes a few
columns through all steps.

Sums run within programs, then over programs, in an order that constants fix. There are no atomics
and no autotuning, so a run repeats bit for bit. All arithmetic is float32, whatever x is stored in.

`stats` begins with four rows of C values: mean, rest, variance, r = 1 / sqrt(variance + eps).
`rest` is what the float32 mean lacks; a large mean would lose too much without it.
"""

import os

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its default will change: other rounding

import triton
import triton.language as tl

MOST_PROGRAMS = 512  # of a pass that sums: four for each multiprocessor of a large card
WINDOWS, CHANNELS = 16, 64  # that a program of the CNN works on at a time
ROWS, COLUMNS = 512, 4  # and one of the MLP
# They are default arguments below: triton compares a global with its first value at each launch.


# Statistics


@triton.jit
def join(n, mean, m2):
    """Count, mean and sum of squared deviations of samples, (K, C) → (C,): Chan et al. 1983."""
    total = tl.sum(n, 0)
    middle = tl.sum(n * mean, 0) / tl.maximum(total, 1.0)
    d = mean - middle[None, :]
    return total, middle, tl.sum(m2 + n * d * d, 0)


@triton.jit
def welford(n, mean, m2, x, there):
    """Take one value for each of (K, C) samples in, where `there` (K,): Welford 1962."""
    n += there
    d = x - mean
    mean += d * (there / tl.maximum(n, 1.0))[:, None]
    m2 += d * (x - mean) * there[:, None]
    return n, mean, m2


@triton.jit
def write_statistics(stats_ptr, c, own, C, shift, total, offset, m2, eps):
    """From the statistics of x - shift. `shift` is a value of x, so the difference is exact."""
    mean, variance = shift + offset, m2 / total
    rest, r = (shift - mean) + offset, 1 / tl.sqrt_rn(variance + eps)
    tl.store(stats_ptr + c, mean, own)
    tl.store(stats_ptr + C + c, rest, own)
    tl.store(stats_ptr + 2 * C + c, variance, own)
    tl.store(stats_ptr + 3 * C + c, r, own)
    return mean, rest, variance, r


@triton.jit
def track(mean_ptr, variance_ptr, count_ptr, c, own, mean, variance, n, momentum):
    """Move the running statistics towards a batch's, as BatchNorm.track; None: there are none."""
    if count_ptr is not None:
        first = tl.program_id(0) == 0
        tl.store(count_ptr, tl.load(count_ptr, first, 0) + 1, first)
    if mean_ptr is not None:
        before = tl.load(mean_ptr + c, own, 0.0)
        tl.store(mean_ptr + c, before + momentum * (mean - before), own)
        before, unbiased = tl.load(variance_ptr + c, own, 0.0), variance * (n / (n - 1))
        tl.store(variance_ptr + c, before + momentum * (unbiased - before), own)


@triton.jit
def read_statistics(stats_ptr, c, own, C):
    mean, rest = tl.load(stats_ptr + c, own, 0.0), tl.load(stats_ptr + C + c, own, 0.0)
    return mean, rest, tl.load(stats_ptr + 3 * C + c, own, 0.0)


@triton.jit
def normalized(x, mean, rest, r):
    """xhat (K, C)."""
    return ((x - mean[None, :]) - rest[None, :]) * r[None, :]


@triton.jit
def per_channel(ptr, c, own, default: tl.constexpr):
    """Weight or bias of channels c; `default` for a layer without."""
    nothing = tl.full(c.shape, default, tl.float32)
    return nothing if ptr is None else tl.load(ptr + c, own, default)


# The CNN's block: MaxPool(dropout(ReLU(batch_norm(x))))


@triton.jit
def channels(C, CHANNELS: tl.constexpr):
    """The channels of this program, and which of them exist."""
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    return c, c < C


@triton.jit
def locate(window, N, H, W):
    """Sample, row and column of windows that cover all of x, half ones at odd edges too.

    Also whether MaxPool takes the window, and which one it is for MaxPool.
    """
    h, w = (H + 1) // 2, (W + 1) // 2
    n, row, column = window // (h * w), window // w % h, window % w
    pooled = (n < N) & (row < H // 2) & (column < W // 2)
    return n, row, column, pooled, (n * (H // 2) + row) * (W // 2) + column


@triton.jit
def pixel(n, row, column, tap: tl.constexpr, N, H, W):
    """Pixel `tap` (0 to 3) of each window, and whether it exists."""
    y, x = row * 2 + tap // 2, column * 2 + tap % 2
    return (n * H + y) * W + x, (n < N) & (y < H) & (x < W)


@triton.jit(do_not_specialize=["N", "H", "W"])
def pool_kernel(x_ptr, weight_ptr, mask_ptr, pooled_ptr, code_ptr, stats_ptr, N, H, W, C,
                PROGRAMS: tl.constexpr, WINDOWS: tl.constexpr = WINDOWS,
                CHANNELS: tl.constexpr = CHANNELS):
    """x → the value of each window that MaxPool will take, and its place; parts of statistics.

    mask (N, C, H, W) of single values, or None.
    pooled (N, C, H // 2, W // 2): the largest value, or the smallest where weight < 0.
    code, the same shape: its place, 0 to 3; 4: dropout leaves none of the four.
    stats (4 + 3 * PROGRAMS, C): from row 4 on count, mean, sum of squared deviations of
    x - x[0, :, 0, 0], of each program.
    """
    c, own = channels(C, CHANNELS)
    sign = per_channel(weight_ptr, c, own, 1.0)
    sign = tl.where(sign < 0, -1.0, tl.where(sign > 0, 1.0, 0.0))[None, :]  # 0: the first one wins
    shift = tl.load(x_ptr + c, own, 0.0).to(tl.float32)[None, :]
    n = tl.zeros((WINDOWS,), tl.float32)
    mean, m2 = tl.zeros((WINDOWS, CHANNELS), tl.float32), tl.zeros((WINDOWS, CHANNELS), tl.float32)
    total = N * ((H + 1) // 2) * ((W + 1) // 2)
    for start in range(tl.program_id(0) * WINDOWS, total, PROGRAMS * WINDOWS):
        sample, row, column, pooled, place = locate(start + tl.arange(0, WINDOWS), N, H, W)
        best = tl.full((WINDOWS, CHANNELS), -float("inf"), tl.float32)
        largest, code = tl.zeros_like(best), tl.full((WINDOWS, CHANNELS), 4, tl.int32)
        for tap in tl.static_range(4):
            at, there = pixel(sample, row, column, tap, N, H, W)
            at, inside = at[:, None] * C + c[None, :], there[:, None] & own[None, :]
            x = tl.load(x_ptr + at, inside, 0.0).to(tl.float32)
            n, mean, m2 = welford(n, mean, m2, x - shift, there.to(tl.float32))
            better = x * sign > best
            if mask_ptr is not None:
                better = better & (tl.load(mask_ptr + at, inside, 0) != 0)
            best, largest = tl.where(better, x * sign, best), tl.where(better, x, largest)
            code = tl.where(better, tap, code)
        to, inside = place[:, None] * C + c[None, :], pooled[:, None] & own[None, :]
        tl.store(pooled_ptr + to, largest, inside)
        tl.store(code_ptr + to, code, inside)
    n, mean, m2 = join(tl.broadcast_to(n[:, None], (WINDOWS, CHANNELS)), mean, m2)
    part = stats_ptr + (4 + tl.program_id(0)) * C + c
    tl.store(part, n, own)
    tl.store(part + PROGRAMS * C, mean, own)
    tl.store(part + 2 * PROGRAMS * C, m2, own)


@triton.jit
def statistics_kernel(x_ptr, stats_ptr, offset_ptr, mean_ptr, variance_ptr, count_ptr, C, eps,
                      momentum, PROGRAMS: tl.constexpr, COLUMNS: tl.constexpr = COLUMNS):
    """The parts in stats → its first four rows; the running statistics, of x + offset (C,)."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    own = c < C
    part = stats_ptr + (4 + tl.arange(0, PROGRAMS))[:, None] * C + c[None, :]
    n, mean = tl.load(part, own[None, :], 0.0), tl.load(part + PROGRAMS * C, own[None, :], 0.0)
    m2 = tl.load(part + 2 * PROGRAMS * C, own[None, :], 0.0)
    shift = tl.load(x_ptr + c, own, 0.0).to(tl.float32)
    n, mean, m2 = join(n, mean, m2)
    mean, _, variance, _ = write_statistics(stats_ptr, c, own, C, shift, n, mean, m2, eps)
    mean += per_channel(offset_ptr, c, own, 0.0)
    track(mean_ptr, variance_ptr, count_ptr, c, own, mean, variance, n, momentum)


@triton.jit(do_not_specialize=["total", "size"])
def forward_kernel(pooled_ptr, code_ptr, weight_ptr, bias_ptr, stats_ptr, mask_ptr, y_ptr, factor,
                   total, size, C, WINDOWS: tl.constexpr = WINDOWS,
                   CHANNELS: tl.constexpr = CHANNELS):
    """pooled → y = ReLU(xhat * weight + bias) * mask * factor; code becomes 4 where y is zero.

    mask (N, C) of whole maps, or None. `total` windows, `size` of them a map. factor 1 / (1 - p).
    """
    c, own = channels(C, CHANNELS)
    window = tl.program_id(0) * WINDOWS + tl.arange(0, WINDOWS)
    inside = (window < total)[:, None] & own[None, :]
    at = window[:, None] * C + c[None, :]
    code = tl.load(code_ptr + at, inside, 4)
    mean, rest, r = read_statistics(stats_ptr, c, own, C)
    x = normalized(tl.load(pooled_ptr + at, inside, 0.0).to(tl.float32), mean, rest, r)
    weight, bias = per_channel(weight_ptr, c, own, 1.0), per_channel(bias_ptr, c, own, 0.0)
    y = tl.maximum(x * weight[None, :] + bias[None, :], 0.0, propagate_nan=tl.PropagateNan.ALL)
    y *= tl.where(code < 4, factor, 0.0)
    if mask_ptr is not None:
        mask = tl.load(mask_ptr + (window // size)[:, None] * C + c[None, :], inside, 0.0)
        y *= mask.to(tl.float32)
    tl.store(y_ptr + at, y, inside)
    tl.store(code_ptr + at, tl.where(y > 0, code, 4), inside)


@triton.jit(do_not_specialize=["total"])
def sums_kernel(g_ptr, pooled_ptr, code_ptr, stats_ptr, sums_ptr, factor, total, C,
                PROGRAMS: tl.constexpr, WINDOWS: tl.constexpr = WINDOWS,
                CHANNELS: tl.constexpr = CHANNELS):
    """Parts of sum(g) and sum(g * xhat), g the gradient of xhat * weight + bias.

    They stand in sums (3 + 2 * PROGRAMS, C) from row 3 on. `g_ptr` is the gradient of y. ReLU,
    dropout and MaxPool pass it on where code < 4.
    """
    c, own = channels(C, CHANNELS)
    mean, rest, r = read_statistics(stats_ptr, c, own, C)
    sum_g = tl.zeros((WINDOWS, CHANNELS), tl.float32)
    sum_gx = tl.zeros((WINDOWS, CHANNELS), tl.float32)
    for start in range(tl.program_id(0) * WINDOWS, total, PROGRAMS * WINDOWS):
        window = start + tl.arange(0, WINDOWS)
        inside = (window < total)[:, None] & own[None, :]
        at = window[:, None] * C + c[None, :]
        x = tl.load(pooled_ptr + at, inside, 0.0).to(tl.float32)
        g = tl.load(g_ptr + at, inside, 0.0).to(tl.float32) * factor
        g = tl.where(tl.load(code_ptr + at, inside, 4) < 4, g, 0.0)
        sum_g += g
        sum_gx += g * normalized(x, mean, rest, r)
    part = sums_ptr + (3 + tl.program_id(0)) * C + c
    tl.store(part, tl.sum(sum_g, 0), own)
    tl.store(part + PROGRAMS * C, tl.sum(sum_gx, 0), own)


@triton.jit
def add_kernel(sums_ptr, C, PROGRAMS: tl.constexpr, COLUMNS: tl.constexpr = COLUMNS):
    """The parts in sums → its rows 0 and 1; row 2, the gradient of a convolution's bias, is 0."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part = sums_ptr + (3 + tl.arange(0, PROGRAMS))[:, None] * C + c[None, :]
    for row in tl.static_range(2):
        values = tl.load(part + row * PROGRAMS * C, (c < C)[None, :], 0.0)
        tl.store(sums_ptr + row * C + c, tl.sum(values, 0), c < C)
    tl.store(sums_ptr + 2 * C + c, tl.zeros((COLUMNS,), tl.float32), c < C)


@triton.jit(do_not_specialize=["N", "H", "W"])
def backward_kernel(x_ptr, g_ptr, code_ptr, weight_ptr, stats_ptr, sums_ptr, dx_ptr, factor,
                    N, H, W, C, WINDOWS: tl.constexpr = WINDOWS,
                    CHANNELS: tl.constexpr = CHANNELS):
    """d x = weight * r * (g - sum(g) / n - xhat * sum(g * xhat) / n), of the shape of x.

    g is not zero at one pixel of a window at most, the one that MaxPool took.
    """
    c, own = channels(C, CHANNELS)
    window = tl.program_id(0) * WINDOWS + tl.arange(0, WINDOWS)
    sample, row, column, pooled, place = locate(window, N, H, W)
    at, inside = place[:, None] * C + c[None, :], pooled[:, None] & own[None, :]
    g = tl.load(g_ptr + at, inside, 0.0).to(tl.float32) * factor
    code = tl.load(code_ptr + at, inside, 4)
    mean, rest, r = read_statistics(stats_ptr, c, own, C)
    scale = per_channel(weight_ptr, c, own, 1.0) * r
    n = N * H * W * 1.0
    shares = tl.load(sums_ptr + c, own, 0.0) / n, tl.load(sums_ptr + C + c, own, 0.0) / n
    for tap in tl.static_range(4):
        at, there = pixel(sample, row, column, tap, N, H, W)
        at, inside = at[:, None] * C + c[None, :], there[:, None] & own[None, :]
        x = normalized(tl.load(x_ptr + at, inside, 0.0).to(tl.float32), mean, rest, r)
        own_g = tl.where(code == tap, g, 0.0)
        dx = scale[None, :] * (own_g - shares[0][None, :] - x * shares[1][None, :])
        tl.store(dx_ptr + at, dx, inside)


@triton.jit(do_not_specialize=["N", "H", "W"])
def evaluation_kernel(x_ptr, weight_ptr, bias_ptr, offset_ptr, mean_ptr, variance_ptr, y_ptr, eps,
                      N, H, W, C, WINDOWS: tl.constexpr = WINDOWS,
                      CHANNELS: tl.constexpr = CHANNELS):
    """x → y = MaxPool(ReLU((x + offset - mean) * r * weight + bias)), of running statistics."""
    c, own = channels(C, CHANNELS)
    window = tl.program_id(0) * WINDOWS + tl.arange(0, WINDOWS)
    sample, row, column, pooled, place = locate(window, N, H, W)
    inside = pooled[:, None] & own[None, :]
    mean = (tl.load(mean_ptr + c, own, 0.0) - per_channel(offset_ptr, c, own, 0.0))[None, :]
    r = 1 / tl.sqrt_rn(tl.load(variance_ptr + c, own, 1.0) + eps)
    scale = (per_channel(weight_ptr, c, own, 1.0) * r)[None, :]
    bias = per_channel(bias_ptr, c, own, 0.0)[None, :]
    y = tl.zeros((WINDOWS, CHANNELS), tl.float32)
    for tap in tl.static_range(4):
        at, _ = pixel(sample, row, column, tap, N, H, W)
        x = tl.load(x_ptr + at[:, None] * C + c[None, :], inside, 0.0).to(tl.float32)
        x = (x - mean) * scale + bias
        y = tl.maximum(y, x, propagate_nan=tl.PropagateNan.ALL)  # from zero on: ReLU
    tl.store(y_ptr + place[:, None] * C + c[None, :], y, inside)


# The MLP's: dropout(ReLU(batch_norm(x)))


@triton.jit
def load_rows(x_ptr, start, c, own, N, C, ROWS: tl.constexpr):
    """Rows from `start` on, float32 (ROWS, columns), where they lie, and which exist."""
    row = start + tl.arange(0, ROWS)
    at, inside = row[:, None] * C + c[None, :], (row < N)[:, None] & own[None, :]
    return tl.load(x_ptr + at, inside, 0.0).to(tl.float32), at, inside, row


@triton.jit(do_not_specialize=["N"])
def columns_forward_kernel(x_ptr, weight_ptr, bias_ptr, mask_ptr, y_ptr, stats_ptr, mean_ptr,
                           variance_ptr, count_ptr, eps, factor, momentum, N, C,
                           ROWS: tl.constexpr = ROWS, COLUMNS: tl.constexpr = COLUMNS):
    """x (N, C) → y = ReLU(xhat * weight + bias) * mask * factor; stats (4, C); what is tracked."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    own = c < C
    shift = tl.load(x_ptr + c, own, 0.0).to(tl.float32)
    n = tl.zeros((ROWS,), tl.float32)
    mean, m2 = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, N, ROWS):
        x, _, _, row = load_rows(x_ptr, start, c, own, N, C, ROWS)
        n, mean, m2 = welford(n, mean, m2, x - shift[None, :], (row < N).to(tl.float32))
    n, mean, m2 = join(tl.broadcast_to(n[:, None], (ROWS, COLUMNS)), mean, m2)
    mean, rest, variance, r = write_statistics(stats_ptr, c, own, C, shift, n, mean, m2, eps)
    track(mean_ptr, variance_ptr, count_ptr, c, own, mean, variance, n, momentum)
    weight, bias = per_channel(weight_ptr, c, own, 1.0), per_channel(bias_ptr, c, own, 0.0)
    for start in range(0, N, ROWS):
        x, at, inside, _ = load_rows(x_ptr, start, c, own, N, C, ROWS)
        y = normalized(x, mean, rest, r) * weight[None, :] + bias[None, :]
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL) * factor
        if mask_ptr is not None:
            y = tl.where(tl.load(mask_ptr + at, inside, 0.0) != 0, y, 0.0)
        tl.store(y_ptr + at, y, inside)


@triton.jit(do_not_specialize=["N"])
def columns_backward_kernel(x_ptr, y_ptr, g_ptr, weight_ptr, stats_ptr, sums_ptr, dx_ptr, factor,
                            N, C, ROWS: tl.constexpr = ROWS, COLUMNS: tl.constexpr = COLUMNS):
    """g, the gradient of y → that of x; sums (2, C) as in the CNN's."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    own = c < C
    mean, rest, r = read_statistics(stats_ptr, c, own, C)
    sum_g, sum_gx = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, N, ROWS):
        x, at, inside, _ = load_rows(x_ptr, start, c, own, N, C, ROWS)
        g = passed(y_ptr, g_ptr, at, inside, factor)
        sum_g += g
        sum_gx += g * normalized(x, mean, rest, r)
    sum_g, sum_gx = tl.sum(sum_g, 0), tl.sum(sum_gx, 0)
    tl.store(sums_ptr + c, sum_g, own)
    tl.store(sums_ptr + C + c, sum_gx, own)
    scale = per_channel(weight_ptr, c, own, 1.0) * r
    sum_g, sum_gx = sum_g / N, sum_gx / N
    for start in range(0, N, ROWS):
        x, at, inside, _ = load_rows(x_ptr, start, c, own, N, C, ROWS)
        x = normalized(x, mean, rest, r)
        g = passed(y_ptr, g_ptr, at, inside, factor)
        tl.store(dx_ptr + at, scale[None, :] * (g - sum_g[None, :] - x * sum_gx[None, :]), inside)


@triton.jit
def passed(y_ptr, g_ptr, at, inside, factor):
    """The gradient that ReLU and dropout pass on: where y is not zero."""
    g = tl.load(g_ptr + at, inside, 0.0).to(tl.float32) * factor
    return tl.where(tl.load(y_ptr + at, inside, 0.0) > 0, g, 0.0)
