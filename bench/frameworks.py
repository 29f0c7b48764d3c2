"""Batch normalization and dropout of several frameworks, measured on the same inputs.

    python bench/frameworks.py                     the tables of docs/frameworks.md
    python bench/frameworks.py Paddle "Keras on"   only rows whose names start so

Each framework runs in a process of its own. One that is not installed is named and left out:
pip install keras jax flax paddlepaddle "mlx[cpu]" tinygrad onnx onnxruntime (tinygrad needs clang)
"""

import importlib
import json
import os
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
NCHW, NHWC = (0, 1, 2, 3), (0, 2, 3, 1)


# ---- one function per framework, which returns `train` and `drop`, from numpy to numpy ----------
# train(x, axis) normalizes x by a new layer, in training, with the channels on this axis.
# It returns y, the running mean and the running variance.

def with_torch(module):
    import torch
    nn = importlib.import_module(module)

    def train(x, axis):
        layer = nn.BatchNorm2d(x.shape[axis])
        y = layer(torch.from_numpy(x).movedim(axis, 1))  # channels_last if they were last
        return y.detach().numpy(), layer.running_mean.numpy(), layer.running_var.numpy()
    return train, lambda x, p: nn.Dropout(p)(torch.from_numpy(x)).numpy()


def tinygrad():
    from tinygrad import Tensor, helpers, nn
    helpers.TRAINING.value = 1

    def train(x, axis):
        layer = nn.BatchNorm2d(x.shape[axis])
        return layer(Tensor(x)).numpy(), layer.running_mean.numpy(), layer.running_var.numpy()
    return train, lambda x, p: Tensor(x).dropout(p).numpy()


def mlx():
    import mlx.core as mx
    from mlx import nn

    def train(x, axis):
        layer = nn.BatchNorm(x.shape[axis])
        y = layer(mx.array(x))
        return np.array(y), np.array(layer.running_mean), np.array(layer.running_var)
    return train, lambda x, p: np.array(nn.Dropout(p)(mx.array(x)))


def keras():
    import keras
    out = keras.ops.convert_to_numpy

    def train(x, axis):
        layer = keras.layers.BatchNormalization(axis)
        return out(layer(x, training=True)), out(layer.moving_mean), out(layer.moving_variance)
    return train, lambda x, p: out(keras.layers.Dropout(p)(x, training=True))


def flax(**options):
    from flax import nnx

    def train(x, axis):
        layer = nnx.BatchNorm(x.shape[axis], axis=axis, rngs=nnx.Rngs(0), **options)
        return np.array(layer(x)), np.array(layer.mean[...]), np.array(layer.var[...])
    return train, lambda x, p: np.array(nnx.Dropout(p, rngs=nnx.Rngs(0))(x))


def paddle():
    from paddle import nn, to_tensor

    def train(x, axis):
        layer = nn.BatchNorm2D(x.shape[axis], data_format="NCHW" if axis == 1 else "NHWC")
        return layer(to_tensor(x)).numpy(), layer._mean.numpy(), layer._variance.numpy()
    return train, lambda x, p: nn.Dropout(p)(to_tensor(x)).numpy()


def onnx(module, session):
    from onnx import helper
    session = getattr(importlib.import_module(module), session)
    info, opset = helper.make_tensor_value_info, helper.make_opsetid("", 21)

    def call(operator, outputs, inputs, **attributes):
        taken = [info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                 for name, array in inputs.items()]
        node = helper.make_node(operator, list(inputs), outputs, **attributes)
        graph = helper.make_graph([node], "one", taken, [info(name, 1, None) for name in outputs])
        model = helper.make_model(graph, ir_version=10, opset_imports=[opset])
        return session(model.SerializeToString()).run(None, inputs)

    def train(x, axis):
        one = np.ones(x.shape[axis], "float32")
        inputs = {"x": x, "scale": one, "b": 0 * one, "mean": 0 * one, "var": one}
        return call("BatchNormalization", ["y", "new_mean", "new_var"], inputs, training_mode=1)

    return train, lambda x, p: call("Dropout", ["y"], {
        "x": x, "ratio": np.array(p, "float32"), "training": np.array(True)})[0]


BOTH = (NCHW, NHWC)
ROWS = {  # the package, the memory orders that it has, the function
    "torch": ("torch", BOTH, partial(with_torch, "torch.nn")),
    "torch, 2 threads": ("torch", BOTH, partial(with_torch, "torch.nn")),
    "here on torch": ("torch", BOTH, partial(with_torch, "layers")),
    "tinygrad": ("tinygrad", (NCHW,), tinygrad),
    "MLX": ("mlx", (NHWC,), mlx),
    "Keras on jax": ("keras", BOTH, keras),
    "Keras on torch": ("keras", BOTH, keras),
    "Flax": ("flax", BOTH, flax),
    "Flax, use_fast_variance=False": ("flax", BOTH, partial(flax, use_fast_variance=False)),
    "Paddle": ("paddlepaddle", BOTH, paddle),
    "ONNX reference": ("onnx", (NCHW,), partial(onnx, "onnx.reference", "ReferenceEvaluator")),
    "onnxruntime": ("onnxruntime", (NCHW,), partial(onnx, "onnxruntime", "InferenceSession"))}


# ---- what is measured ---------------------------------------------------------------------------

def attempt(function):
    """What the call returns, or the name of what it raises."""
    try:
        return function()
    except Exception as error:
        return type(error).__name__


def measure(train, drop, orders):
    def step(x, order=orders[0]):
        return train(np.ascontiguousarray(x.transpose(order)), order.index(1))

    def deviation(order):
        noise = np.random.default_rng(1).standard_normal((128, 8, 28, 28), dtype="float32")
        return f"{step(10000 + noise, order)[0].std():.4g}" if order in orders else "–"

    x = np.random.default_rng(0).standard_normal((8, 3, 4, 4), dtype="float32") + 3
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    y, running_mean, running_var = step(x)
    share = (running_mean / mean).mean()
    ratio = ((running_var - (1 - share)) / share / variance).mean()  # 128 / 127 if unbiased
    eps = (1e-4 / step(0.01 * x)[0].var() - 1e-4) * variance.mean()
    alone = np.float32([2, 3, 5]).reshape(1, 3, 1, 1)
    return {"running variance": "unbiased" if ratio > 1.004 else "biased",
            "new value's share": f"{share:.2g}", "eps": f"{eps:.0e}",
            "deviation, NCHW": deviation(NCHW), "NHWC": deviation(NHWC),
            "2, 3, 5 alone": attempt(lambda: str(step(alone)[0].ravel().tolist())),
            "dropout, p = 1": attempt(lambda: f"{drop(np.ones(99, 'float32'), 1.0).mean():g}")}


def drift(name, module, cast):
    """Running statistics after many batches of mean 5 and variance 1, with momentum 0.01."""
    import torch
    torch.manual_seed(0)
    layer = cast(importlib.import_module(module).BatchNorm1d(64, momentum=0.01))
    for _ in range(2000):
        layer((5 + torch.randn(128, 64)).bfloat16())
    means = [f"{float(a.float().mean()):.2f}" for a in (layer.running_mean, layer.running_var)]
    return {"2,000 steps": name, "running mean (5)": means[0], "running variance (1)": means[1]}


def row(name):
    environment = os.environ | {"OMP_NUM_THREADS": "2" if "2 threads" in name else "1",
                                "KERAS_BACKEND": name.rpartition(" ")[2]}
    done = subprocess.run([sys.executable, __file__, "--row", name], env=environment,
                          capture_output=True, text=True)
    if done.returncode:
        print(f"left out: {name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def table(rows):
    head = [list(rows[0]), ["---"] * len(rows[0])] if rows else []
    for line in [*head, *(list(found.values()) for found in rows)]:
        print("| " + " | ".join(line) + " |")
    print()


if __name__ == "__main__" and sys.argv[1:2] == ["--row"]:
    package, orders, function = ROWS[sys.argv[2]]
    label = f"{sys.argv[2]} ({version(package)})"
    print(json.dumps({"": label} | measure(*function(), orders)))
elif __name__ == "__main__":
    wanted = tuple(sys.argv[1:]) or ("",)
    table([found for name in ROWS if name.startswith(wanted) and (found := row(name))])
    if importlib.util.find_spec("torch"):
        table([drift(f"{name}, {how}", module, cast)
               for name, module in (("torch", "torch.nn"), ("here", "layers"))
               for how, cast in ((".bfloat16()", lambda layer: layer.bfloat16()),
                                 ("float32, input bfloat16", lambda layer: layer))])
