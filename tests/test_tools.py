"""docs/tools.md: rows that need no package but torch, and the ways around for the others.

test_agreement.py and test_linear.py hold quantize_dynamic, symbolic_trace and FlopCounterMode.
"""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.mkldnn import to_mkldnn

from cnn.model import CNN
from mlp.model import MLP

PAGE = Path(__file__).parent.parent / "docs" / "tools.md"
TWIN, AVERAGE, FUSE = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def page(code, **names):
    exec(code, names)
    return names


with_torch_layers = page(TWIN)["with_torch_layers"]


@pytest.fixture
def network():
    """A CNN in training whose running statistics have moved."""
    torch.manual_seed(0)
    network = CNN(drop_rate=0.0)
    for _ in range(3):
        network(3 * IMAGES + 1)
    return network


def kinds(network):
    return {type(layer) for layer in network.modules()}


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    return True


@pytest.mark.parametrize("kind", [CNN, MLP])
def test_the_twin_is_the_same_network(kind):
    network = kind(drop_rate=0.0, **{"hidden_layers": 2} if kind is MLP else {})
    for tensor in network.state_dict().values():
        if tensor.dim() == 1:  # no longer those of new layers
            tensor.uniform_(0.5, 1.5)
    twin = with_torch_layers(network)
    assert not any(one.__module__.startswith("layers") for one in kinds(twin))
    x = IMAGES if kind is CNN else IMAGES.flatten(1)
    assert close(network(x), twin(x))
    assert close(list(network.state_dict().values()), list(twin.state_dict().values()))
    assert close(network.eval()(x), twin.eval()(x))
    assert not any(layer.training for layer in with_torch_layers(network).modules())


def test_tools_that_search_by_class_see_nothing(network):
    before = copy.deepcopy(network.state_dict())
    update_bn([IMAGES], network)
    nn.SyncBatchNorm.convert_sync_batchnorm(network)
    torch.func.replace_all_batch_norm_modules_(network)
    assert close(before, network.state_dict())
    assert kinds(network) == kinds(CNN())


def test_the_statistics_of_averaged_weights_as_update_bn_has_them(network):
    twin = with_torch_layers(network)
    update_bn([IMAGES[:8], IMAGES[8:]], twin)
    page(AVERAGE, network=network, batches=[IMAGES[:8], IMAGES[8:]], torch=torch)
    assert close(network.norm1.running_mean, twin.norm1.running_mean)
    assert close(network.norm2.running_var, twin.norm2.running_var)
    assert network.norm1.momentum == 0.1 and network.training


def test_fuse_modules_refuses(network):
    with pytest.raises(AssertionError, match="did not find fuser method"):
        torch.ao.quantization.fuse_modules(network.eval(), [["conv1", "norm1"]])


def fused(network):
    network = copy.deepcopy(network).eval()
    page(FUSE, network=network)
    return network


def operators(network):
    """Of the graph; dropout of torch.nn stays in it, though it does nothing in evaluation."""
    program = torch.export.export(network.eval(), (IMAGES,))
    return [str(node.target) for node in program.graph.nodes
            if node.op == "call_function" and "dropout" not in str(node.target)]


def test_the_export_recipe_gives_the_twins_graph(network):
    short, twin = fused(network), fused(with_torch_layers(network))
    assert operators(short) == operators(twin)
    assert len(operators(short)) < len(operators(copy.deepcopy(network)))
    assert close(short(IMAGES), network.eval()(IMAGES))


@pytest.mark.filterwarnings("ignore")
def test_the_recipe_for_onnx(network):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    programs = [torch.onnx.export(each.eval(), (IMAGES,), dynamo=True, verbose=False)
                for each in (fused(network), with_torch_layers(network), network)]
    nodes = [[node.op_type for node in program.model.graph] for program in programs]
    assert nodes[0] == nodes[1] and len(nodes[0]) < len(nodes[2])
    for program in programs:
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
        found = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})[0]
        assert close(torch.from_numpy(found), network.eval()(IMAGES))


def test_a_network_exported_in_training_stays_in_training(network):
    program = torch.export.export(network, (IMAGES,)).module()
    with pytest.raises(NotImplementedError):
        program.eval()
    before = program.norm1.running_mean.clone()
    program(IMAGES)
    assert not torch.equal(before, program.norm1.running_mean)


@pytest.mark.filterwarnings("ignore")
def test_layers_that_a_tool_replaced_by_scripted_ones_run(network):
    """A ScriptModule has no `_parameters` of its own, which the fast path looked for."""
    twin = with_torch_layers(network.eval())
    twin.norm1 = torch.jit.script(twin.norm1)
    assert close(twin(IMAGES), network(IMAGES))
    if torch.backends.mkldnn.is_available():
        found = to_mkldnn(with_torch_layers(network))(IMAGES.to_mkldnn()).to_dense()
        assert close(found, network(IMAGES))
