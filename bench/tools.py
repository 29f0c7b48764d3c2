"""What tools do with the layers from here, and with torch.nn's in their place.

    python bench/tools.py                the rows of docs/tools.md: tool, version, ours, the twin's
    python bench/tools.py timm captum    only tools whose names start so

Each row runs in a process of its own. A tool that is not installed is named and left out.
"""

import copy
import io
import json
import re
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cnn.model import CNN
from layers import BatchNorm2d
from mlp.model import MLP

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tools.md"
X = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 10
ROWS = {}


def twin(network):
    """The same network and weights with torch.nn's layers: the code of docs/tools.md."""
    names = {}
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[1], names)
    return names["with_torch_layers"](network)


def trained(network):
    """After three steps, so that the running statistics are not those of a new layer."""
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    x = X.flatten(1) if isinstance(network, MLP) else X
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(network(x), Y).backward()
        optimizer.step()
    return network


def norms(network):
    return [layer for layer in network.modules() if hasattr(layer, "running_mean")]


def moved(network, act):
    """Whether `act` changes the running statistics."""
    before = norms(network)[0].running_mean.clone()
    act()
    return "statistics moved" if (norms(network)[0].running_mean != before).any() else "did nothing"


def number(tensor):
    return f"{float(tensor.detach().double().abs().sum()):.4g}"


def row(package, what, network=lambda: CNN(drop_rate=0.0)):
    """Make a function of a network a row; `network` builds ours."""
    def put(function):
        ROWS[f"{package} {what}"] = package.partition(" ")[0], network, function
        return function
    return put


def mlp():
    return MLP(drop_rate=0.0)


def data():
    return DataLoader(TensorDataset(X, Y), batch_size=8)


# ---- counting -----------------------------------------------------------------------------------

@row("torchinfo", "summary")
def _(network):
    import torchinfo
    found = torchinfo.summary(network, (2, 3, 32, 32), verbose=0)
    return f"{found.total_params} parameters, {found.total_mult_adds} multiply-adds"

@row("thop", "profile, the MLP", mlp)
def _(network):
    import thop
    operations, parameters = thop.profile(network, (X[:1].flatten(1),), verbose=False)
    return f"{parameters:g} parameters, {operations:g} operations"

@row("thop", "profile")
def _(network):
    import thop
    operations, parameters = thop.profile(network, (X[:1],), verbose=False)
    return f"{parameters:g} parameters, {operations:g} operations"

@row("calflops", "calculate_flops, the MLP", mlp)
def _(network):
    import calflops
    return " ".join(map(str, calflops.calculate_flops(network, (1, 3072), print_results=False)))

@row("calflops", "calculate_flops")
def _(network):
    import calflops
    return " ".join(map(str, calflops.calculate_flops(network, (1, 3, 32, 32), print_results=False)))

@row("ptflops", "get_model_complexity_info")
def _(network):
    import ptflops
    return " ".join(ptflops.get_model_complexity_info(network, (3, 32, 32), print_per_layer_stat=False))

@row("fvcore", "FlopCountAnalysis")
def _(network):
    from fvcore.nn import FlopCountAnalysis
    return f"{FlopCountAnalysis(network.eval(), X[:1]).total():g}"

@row("torch", "FlopCounterMode")
def _(network):
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter:
        network(X).sum().backward()
    return f"{counter.get_total_flops():g}"


# ---- statistics ---------------------------------------------------------------------------------

@row("torch", "swa_utils.update_bn")
def _(network):
    return moved(network, lambda: torch.optim.swa_utils.update_bn(data(), network))

@row("torch", "SyncBatchNorm.convert_sync_batchnorm")
def _(network):
    found = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return f"{sum(type(layer) is nn.SyncBatchNorm for layer in found.modules())} of 2 converted"

@row("torch", "func.replace_all_batch_norm_modules_")
def _(network):
    torch.func.replace_all_batch_norm_modules_(network)
    return f"{sum(layer.running_mean is None for layer in norms(network))} of 2 replaced"

@row("torch", "swa_utils.AveragedModel, use_buffers")
def _(network):
    average = torch.optim.swa_utils.AveragedModel(network, use_buffers=True)
    trained(network)
    average.update_parameters(network)
    return number(norms(average)[0].running_mean)

@row("fvcore", "precise_bn.update_bn_stats")
def _(network):
    from fvcore.nn.precise_bn import update_bn_stats
    return moved(network, lambda: update_bn_stats(network, [X], 1))

@row("lightning", "StochasticWeightAveraging")
def _(network):
    # after the average of the weights, the statistics are computed again
    from lightning.pytorch.callbacks import StochasticWeightAveraging
    callback = StochasticWeightAveraging(0.1)
    return "knows batch norm" if callback.pl_module_contains_batch_norm(network) else "sees none"

@row("lightning", "Trainer.fit")
def _(network):
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network

        def training_step(self, batch):
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, barebones=True)
    trainer.fit(Module(), data())
    return number(network.eval()(X))

@row("lightning", "BaseFinetuning.freeze")
def _(network):
    from lightning.pytorch.callbacks import BaseFinetuning
    BaseFinetuning.freeze(network, train_bn=False)
    return moved(network, lambda: network.train()(X)) + f", tracks {norms(network)[0].track_running_stats}"

@row("lightning", "Trainer(sync_batchnorm=True)")
def _(network):
    from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
    found = TorchSyncBatchNorm().apply(network)
    return f"{sum(type(layer) is nn.SyncBatchNorm for layer in found.modules())} of 2 converted"

@row("pytorch_optimizer", "SAM's disable_running_stats")
def _(network):
    from pytorch_optimizer.optimizer.utils import disable_running_stats
    disable_running_stats(network)
    return moved(network, lambda: network(X))

@row("timm", "freeze_batch_norm_2d")
def _(network):
    from timm.utils.model import freeze_batch_norm_2d
    network = freeze_batch_norm_2d(network)
    return moved(network, lambda: network.train()(X))

@row("timm", "convert_splitbn_model")
def _(network):
    from timm.layers import SplitBatchNorm2d, convert_splitbn_model
    found = convert_splitbn_model(network)
    return f"{sum(type(layer) is SplitBatchNorm2d for layer in found.modules())} of 2 converted"

@row("timm", "ModelEmaV3")
def _(network):
    from timm.utils import ModelEmaV3
    average = ModelEmaV3(network, decay=0.9)
    trained(network)
    average.update(network)
    return number(norms(average.module)[0].running_mean)

@row("timm", "param_groups_weight_decay")
def _(network):
    from timm.optim import param_groups_weight_decay
    return str([len(group["params"]) for group in param_groups_weight_decay(network)])


# ---- explaining ---------------------------------------------------------------------------------

@row("captum", "IntegratedGradients, Saliency, DeepLift")
def _(network):
    from captum.attr import DeepLift, IntegratedGradients, Saliency
    trained(network).eval()
    return " ".join(number(kind(network).attribute(X[:2].clone().requires_grad_(), target=3))
                    for kind in (IntegratedGradients, Saliency, DeepLift))

@row("captum", "LRP")
def _(network):
    from captum.attr import LRP
    return number(LRP(trained(network).eval()).attribute(X[:2], target=3))

@row("grad-cam", "GradCAM, LayerCAM, EigenCAM")
def _(network):
    from pytorch_grad_cam import EigenCAM, GradCAM, LayerCAM
    trained(network).eval()
    return " ".join(f"{kind(network, [network.norm2])(X[:2], None).sum():.4g}"
                    for kind in (GradCAM, LayerCAM, EigenCAM))

@row("grad-cam", "FullGrad")
def _(network):
    from pytorch_grad_cam import FullGrad
    found = FullGrad(trained(network).eval(), [])
    return f"{len(found.bias_data)} layers with a bias"


# ---- per-example gradients, curvature -----------------------------------------------------------

@row("opacus", "ModuleValidator.validate")
def _(network):
    from opacus.validators import ModuleValidator
    return f"{len(ModuleValidator.validate(network, strict=False))} errors"

@row("opacus", "ModuleValidator.fix")
def _(network):
    from opacus.validators import ModuleValidator
    return type(ModuleValidator.fix(network).norm1).__name__

@row("opacus", "PrivacyEngine.make_private")
def _(network):
    from opacus import PrivacyEngine
    PrivacyEngine().make_private(module=network, data_loader=data(), noise_multiplier=1.0,
                                 optimizer=torch.optim.SGD(network.parameters(), 0.1),
                                 max_grad_norm=1.0)
    return "made"

@row("backpack-for-pytorch", "BatchGrad in evaluation, the MLP", mlp)
def _(network):
    from backpack import backpack, extend, extensions
    model, loss = extend(network.eval(), use_converter=False), extend(nn.CrossEntropyLoss())
    with backpack(extensions.BatchGrad()):
        loss(model(X.flatten(1)), Y).backward()
    return str([name for name, p in network.named_parameters() if not hasattr(p, "grad_batch")])

@row("laplace-torch", "last layer, Kronecker")
def _(network):
    from laplace import Laplace
    found = Laplace(trained(network).eval(), "classification", "last_layer", "kron")
    found.fit(data())
    return f"{float(found.log_marginal_likelihood()):.4g}"

@row("laplace-torch", "all layers, diagonal")
def _(network):
    from laplace import Laplace
    found = Laplace(trained(network).eval(), "classification", "all", "diag")
    found.fit(data())
    return f"{float(found.log_marginal_likelihood()):.4g}"

@row("curvlinops-for-pytorch", "HessianLinearOperator in evaluation")
def _(network):
    from curvlinops import HessianLinearOperator
    params = list(network.eval().parameters())
    operator = HessianLinearOperator(network, nn.CrossEntropyLoss(), params, [(X, Y)])
    return number(operator @ torch.ones(operator.shape[1]))

@row("torch", "func.vmap of func.grad in evaluation")
def _(network):
    network.eval()
    params = dict(network.named_parameters())

    def loss(params, x, y):
        return F.cross_entropy(torch.func.functional_call(network, params, (x[None],)), y[None])
    found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, X, Y)
    return number(found["norm1.weight"])


# ---- smaller ------------------------------------------------------------------------------------

def prune(network, **options):
    import torch_pruning
    pruner = torch_pruning.pruner.MagnitudePruner(
        network, X[:1], importance=torch_pruning.importance.MagnitudeImportance(), pruning_ratio=0.5,
        ignored_layers=[network.linear], **options)
    pruner.step()
    return f"{network.conv1.out_channels} of 128 channels left, logits {tuple(network(X).shape)}"

@row("torch-pruning", "MagnitudePruner")
def _(network):
    return prune(network)

@row("torch-pruning", "MagnitudePruner, customized_pruners")
def _(network):
    import torch_pruning
    pruner = torch_pruning.pruner.function.BatchnormPruner()
    return prune(network, customized_pruners={BatchNorm2d: pruner})

@row("torch", "nn.utils.prune")
def _(network):
    from torch.nn.utils import prune
    prune.random_unstructured(network.norm1, "weight", 0.5)
    return f"{int((network.norm1.weight == 0).sum())} of 128 zero, {tuple(network(X).shape)}"

@row("torchao", "quantize_(Int8WeightOnlyConfig)", mlp)
def _(network):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    quantize_(trained(network).eval(), Int8WeightOnlyConfig())
    return number(network(X.flatten(1)))

@row("torch", "ao.quantization.quantize_dynamic, the MLP", mlp)
def _(network):
    found = torch.ao.quantization.quantize_dynamic(network.eval(), {nn.Linear})
    saved = io.BytesIO()
    torch.save(found.state_dict(), saved)
    return f"{round(saved.tell() / 1e5)}00 kB"

@row("torch", "ao.quantization.fuse_modules")
def _(network):
    found = torch.ao.quantization.fuse_modules(network.eval(), [["conv1", "norm1"]])
    return type(found.norm1).__name__

@row("torch", "nn.utils.fuse_conv_bn_eval")
def _(network):
    trained(network).eval()
    return number(nn.utils.fuse_conv_bn_eval(network.conv1, network.norm1)(X))

@row("torch", "fx.experimental.optimization.fuse")
def _(network):
    from torch.fx.experimental.optimization import fuse
    return number(fuse(trained(network).eval())(X))


# ---- elsewhere ----------------------------------------------------------------------------------

@row("safetensors", "save_model, load_model")
def _(network):
    from safetensors.torch import load_model, save_model
    with tempfile.TemporaryDirectory() as folder:
        save_model(trained(network), f"{folder}/a")
        other = copy.deepcopy(network)
        nn.init.zeros_(other.norm1.running_mean)
        load_model(other, f"{folder}/a")
    return number(other.eval()(X))

@row("accelerate", "Accelerator.prepare, one step")
def _(network):
    from accelerate import Accelerator
    accelerator = Accelerator(cpu=True)
    network, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), 0.1))
    accelerator.backward(F.cross_entropy(network(X), Y))
    optimizer.step()
    return number(network.eval()(X))


def distributed():
    """A group of this process alone."""
    import torch.distributed as dist
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

@row("torch", "DistributedDataParallel, three steps")
def _(network):
    distributed()
    return number(trained(nn.parallel.DistributedDataParallel(network)).eval()(X))

@row("torch", "fully_shard (FSDP2), three steps")
def _(network):
    distributed()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    return number(trained(fully_shard(network, mesh=init_device_mesh("cpu", (1,)))).eval()(X))

@row("torch", "FSDP1 with a wrap policy, MixedPrecision(bfloat16): the norm's weight")
def _(network):
    distributed()
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy
    seen = []
    norms(network)[0].register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.dtype))
    whole = FullyShardedDataParallel(
        network, mixed_precision=MixedPrecision(param_dtype=torch.bfloat16),
        auto_wrap_policy=ModuleWrapPolicy({nn.Conv2d}), device_id=torch.device("cpu"))
    whole(X)
    return str(seen[0])

@row("mmengine", "DefaultOptimWrapperConstructor, norm_decay_mult=0")
def _(network):
    from mmengine.optim import DefaultOptimWrapperConstructor
    build = DefaultOptimWrapperConstructor(
        {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1, "weight_decay": 0.1}},
        {"norm_decay_mult": 0.0})
    groups = build(network).optimizer.param_groups
    return f"{sum(group['weight_decay'] == 0 for group in groups)} arrays without decay"

@row("executorch", "to_edge, to_executorch, run")
def _(network):
    from executorch.exir import to_edge
    from executorch.runtime import Runtime
    program = to_edge(torch.export.export(trained(network).eval(), (X,))).to_executorch()
    method = Runtime.get().load_program(program.buffer).load_method("forward")
    return number(method.execute((X,))[0])


def exported(network, fold=True):
    trained(network).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(network, (X,), dynamo=True, verbose=False, optimize=fold)

@row("onnxscript", "torch.onnx.export: nodes")
def _(network):
    return f"{len(exported(network).model.graph)} nodes"

@row("onnxruntime", "of the exported graph")
def _(network):
    import onnxruntime
    model = exported(network).model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model)
    return number(torch.from_numpy(session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]))


def openvino(network, **config):
    import openvino
    model = openvino.convert_model(trained(network).eval(), example_input=X)
    compiled = openvino.compile_model(model, "CPU", config)
    difference = compiled(X.numpy())[0] - network(X).detach().numpy()
    return f"within 1e-4: {bool(abs(difference).max() < 1e-4)}"

@row("openvino", "convert_model, compile_model")
def _(network):
    return openvino(network)

@row("openvino", "the same with INFERENCE_PRECISION_HINT f32")
def _(network):
    return openvino(network, INFERENCE_PRECISION_HINT="f32")

@row("torch", "jit.script")
def _(network):
    return number(torch.jit.script(trained(network).eval())(X))

@row("torch", "jit.trace in evaluation")
def _(network):
    return number(torch.jit.trace(trained(network).eval(), X)(X))

@row("torch", "fx.symbolic_trace")
def _(network):
    return number(torch.fx.symbolic_trace(trained(network).eval())(X))

@row("torch", "fx.symbolic_trace, the modules as leaves")
def _(network):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return type(module).__module__.startswith("layers") or super().is_leaf_module(module, name)
    trained(network)
    graph = torch.fx.GraphModule(network, Tracer().trace(network))
    return number(graph.eval()(X))

@row("torchao", "move_exported_model_to_eval of a network exported in training")
def _(network):
    from torchao.quantization.pt2e import move_exported_model_to_eval
    program = torch.export.export(trained(network), (X,)).module()
    move_exported_model_to_eval(program)
    return moved(network, lambda: program(X)) + ", logits " + number(program(X))

@row("torch", "export in evaluation")
def _(network):
    return number(torch.export.export(trained(network).eval(), (X,)).module()(X))

@row("torch", "compile, a training step")
def _(network):
    torch.compile(network)(X).sum().backward()
    return number(norms(network)[0].running_mean)

@row("torch", "utils.mkldnn.to_mkldnn")
def _(network):
    from torch.utils.mkldnn import to_mkldnn
    return number(to_mkldnn(trained(network).eval())(X.to_mkldnn()).to_dense())


def outcome(name, theirs):
    _, build, function = ROWS[name]
    torch.manual_seed(0)
    network = build()
    try:
        return str(function(twin(network) if theirs else network))
    except ImportError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]:.90}"


if __name__ == "__main__" and sys.argv[1:2] == ["--row"]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    package = ROWS[sys.argv[2]][0]
    print(json.dumps([version(package), *(outcome(sys.argv[2], theirs) for theirs in (False, True))]))
elif __name__ == "__main__":
    for name in ROWS:
        if name.startswith(tuple(sys.argv[1:]) or ""):
            done = subprocess.run([sys.executable, __file__, "--row", name], capture_output=True,
                                  text=True)
            if done.returncode:
                print(f"left out: {name}: {done.stderr.strip()[-150:]}", file=sys.stderr)
                continue
            number_of, ours, theirs = json.loads(done.stdout.splitlines()[-1])
            print(f"| {name} | {number_of} | {ours} | {'same' if ours == theirs else theirs} |",
                  flush=True)
