"""docs/frameworks.md: its code moves the CNN's weights to other frameworks and back.

Each framework is skipped if it is not installed: pip install keras, then KERAS_BACKEND=torch.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from cnn.model import CNN
from mlp.model import MLP

PAGE = Path(__file__).parent.parent / "docs" / "frameworks.md"
CONVERTER, KERAS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
IMAGES = np.random.default_rng(0).standard_normal((4, 3, 32, 32), dtype="float32")
LAST = IMAGES.transpose(0, 2, 3, 1)


@pytest.fixture
def page():
    names = {}
    exec(CONVERTER, names)
    return names


@pytest.fixture
def network():
    """A CNN whose every array differs from a new one's."""
    torch.manual_seed(1)
    network = CNN().eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    return network


def logits(network):
    with torch.no_grad():
        return network(torch.from_numpy(IMAGES)).numpy()


@pytest.mark.parametrize("framework", ["keras", "flax", "mlx", "paddle", "onnx", "tinygrad"])
@pytest.mark.parametrize("kind", [CNN, MLP])
def test_there_and_back_is_the_same_state(page, framework, kind):
    state = kind().state_dict()
    returned = page["back"](page["there"](state, framework), framework)
    assert [name for name in state if "num_batches" not in name] == list(returned)
    assert all(torch.equal(state[name], tensor) for name, tensor in returned.items())


def test_keras_by_the_page_alone(page, network, monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "torch"))
    keras = pytest.importorskip("keras")
    exec(KERAS, page)  # moves a new network there and back
    twin = page["twin"]
    rng = np.random.default_rng(1)
    twin.set_weights([rng.uniform(0.5, 1.5, a.shape) / len(a) for a in twin.get_weights()])
    theirs = keras.ops.convert_to_numpy(twin(LAST, training=False))
    exec(KERAS[KERAS.index("names = "):], page)  # back, as a user of trained Keras weights would
    assert_allclose(logits(page["network"]), theirs, rtol=1e-4, atol=1e-4)
    twin.set_weights(list(page["there"](network.state_dict(), "keras").values()))
    theirs = keras.ops.convert_to_numpy(twin(LAST, training=False))
    assert_allclose(logits(network), theirs, rtol=1e-4, atol=1e-4)


def test_paddle(page, network):
    paddle = pytest.importorskip("paddle")

    class Twin(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv1, self.norm1 = paddle.nn.Conv2D(3, 128, 5), paddle.nn.BatchNorm2D(128)
            self.conv2, self.norm2 = paddle.nn.Conv2D(128, 64, 3), paddle.nn.BatchNorm2D(64)
            self.linear, self.pool = paddle.nn.Linear(2304, 10), paddle.nn.MaxPool2D(2)

        def forward(self, x):
            x = self.pool(paddle.nn.functional.relu(self.norm1(self.conv1(x))))
            x = self.pool(paddle.nn.functional.relu(self.norm2(self.conv2(x))))
            return self.linear(x.flatten(1))

    twin = Twin()
    twin.eval()
    names = {name: name.replace("running_mean", "_mean").replace("running_var", "_variance")
             for name in network.state_dict()}
    arrays = page["there"](network.state_dict(), "paddle")
    twin.set_state_dict({names[name]: np.array(array) for name, array in arrays.items()})
    assert set(names.values()) - set(twin.state_dict()) == {f"norm{i}.num_batches_tracked"
                                                            for i in (1, 2)}
    assert_allclose(logits(network), twin(paddle.to_tensor(IMAGES)).numpy(), rtol=1e-4, atol=1e-4)


def test_flax(page, network):
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    layers = {"conv1": nnx.Conv(3, 128, (5, 5), padding="VALID", rngs=rngs),
              "conv2": nnx.Conv(128, 64, (3, 3), padding="VALID", rngs=rngs),
              "linear": nnx.Linear(2304, 10, rngs=rngs)}
    for name, width in (("norm1", 128), ("norm2", 64)):
        layers[name] = nnx.BatchNorm(width, momentum=0.9, use_running_average=True, rngs=rngs)
    for name, array in page["there"](network.state_dict(), "flax").items():
        layer, _, what = name.partition(".")
        weight = "scale" if "norm" in layer else "kernel"
        theirs = {"weight": weight, "running_mean": "mean", "running_var": "var"}.get(what, what)
        getattr(layers[layer], theirs)[...] = np.array(array)
    x = LAST
    for i in ("1", "2"):
        x = nnx.relu(layers["norm" + i](layers["conv" + i](x)))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
    x = layers["linear"](x.reshape(len(x), -1))
    assert_allclose(logits(network), np.array(x), rtol=1e-4, atol=1e-4)


def test_mlx(page, network):
    mx = pytest.importorskip("mlx.core")
    nn = pytest.importorskip("mlx.nn")

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(3, 128, 5), nn.BatchNorm(128)
            self.conv2, self.norm2 = nn.Conv2d(128, 64, 3), nn.BatchNorm(64)
            self.linear, self.pool = nn.Linear(2304, 10), nn.MaxPool2d(2, 2)

        def __call__(self, x):
            x = self.pool(nn.relu(self.norm1(self.conv1(x))))
            x = self.pool(nn.relu(self.norm2(self.conv2(x))))
            return self.linear(x.flatten(1))

    twin = Twin()
    twin.eval()
    arrays = page["there"](network.state_dict(), "mlx")
    twin.load_weights([(name, mx.array(np.array(array))) for name, array in arrays.items()])
    assert_allclose(logits(network), np.array(twin(mx.array(np.array(LAST)))), rtol=1e-4, atol=1e-4)


def test_onnx(page, network):
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    arrays = page["there"](network.state_dict(), "onnx")
    norm = ("weight", "bias", "running_mean", "running_var")
    nodes, x = [], "x"
    for i in ("1", "2"):
        inputs = {"Conv": [f"conv{i}.weight", f"conv{i}.bias"], "Relu": [], "MaxPool": [],
                  "BatchNormalization": [f"norm{i}.{name}" for name in norm]}
        for operator in ("Conv", "BatchNormalization", "Relu", "MaxPool"):
            pool = {"kernel_shape": [2, 2], "strides": [2, 2]} if operator == "MaxPool" else {}
            nodes.append(onnx.helper.make_node(operator, [x, *inputs[operator]],
                                               [x := operator + i], **pool))
    nodes += [onnx.helper.make_node("Flatten", [x], ["flat"]),
              onnx.helper.make_node("Gemm", ["flat", "linear.weight", "linear.bias"], ["y"],
                                    transB=1)]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "cnn", [info("x", 1, IMAGES.shape)], [info("y", 1, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    theirs = reference.ReferenceEvaluator(model).run(None, {"x": IMAGES})[0]
    assert_allclose(logits(network), theirs, rtol=1e-4, atol=1e-4)
    read = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    assert all(torch.equal(network.state_dict()[name], tensor)
               for name, tensor in page["back"](read, "onnx").items())
