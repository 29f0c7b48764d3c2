"""Break the layers on purpose and see that a test turns red: a test that cannot fail is worth nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from fast import linear

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["fast", "layers", "mlp", "cnn", "pyproject.toml", "tests/conftest.py",
           "tests/comparison.py", "tests/test_layers.py", "tests/test_dropout.py", "tests/test_networks.py",
           "tests/test_linear.py"]


class Mutation(NamedTuple):
    """Texts of files, the text that each becomes, and the test that has to notice."""

    files: str
    replacements: dict[str, str]
    noticed_by: str


MUTATIONS = {
    "biased running variance": Mutation(
        "layers/modules.py", {"variance * (n / (n - 1))": "variance"},
        "tests/test_layers.py::test_training_and_evaluation_on_each_device"),
    "unbiased variance normalizes": Mutation(
        "layers/normalize.py",
        {"variance = d.square().mean(dims, keepdim=True)": "variance = d.var(dims, keepdim=True)"},
        "tests/test_layers.py::test_normalize_is_its_definition"),
    "momentum the wrong way round": Mutation(
        "layers/modules.py", {"self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)":
                      "self.running_mean.lerp_(mean.to(self.running_mean.dtype), 1 - momentum)"},
        "tests/test_layers.py::test_training_and_evaluation_on_each_device"),
    "cumulative average forgets its count": Mutation(
        "layers/modules.py", {"1 / float(count)": "0.1"},
        "tests/test_layers.py::test_training_and_evaluation_on_each_device"),
    "statistics carry gradient into the buffers": Mutation(
        "layers/modules.py layers/normalize.py", {"    @torch.no_grad()\n    def track": "    def track",
                      "        ctx.mark_non_differentiable(mean, variance)\n": ""},
        "tests/test_layers.py::test_running_statistics_are_no_part_of_the_graph"),
    "statistics are constants to the derivative": Mutation(
        "layers/normalize.py", {"        dx = torch.addcmul(": "        dx = 0 * torch.addcmul("},
        "tests/test_layers.py::test_first_and_second_derivatives"),
    "statistics are constants to the second derivative": Mutation(
        "layers/functional.py", {"return mean.flatten(), (x - mean)": "return mean.flatten().detach(), (x - mean)"},
        "tests/test_layers.py::test_gradient_of_a_gradient_as_pytorch"),
    "variance as E[x^2] - E[x]^2": Mutation(
        "layers/normalize.py", {"variance = d.square().mean(dims, keepdim=True)":
                      "variance = wide.square().mean(dims, keepdim=True) - mean.square()"},
        "tests/test_layers.py::test_far_from_zero_as_accurate_as_pytorch"),
    "rounded mean": Mutation(
        "layers/normalize.py", {"        d -= error\n": ""},
        "tests/test_layers.py::test_far_from_zero_as_accurate_as_pytorch"),
    "rounded mean in the derivative": Mutation(
        "layers/normalize.py", {".sub_(error)": ""},
        "tests/test_networks.py::test_a_large_mean_is_carried_as_two_numbers"),
    "rounded mean in the fused block": Mutation(
        "fast/blocks.py", {"offset = -error * scale": "offset = 0 * scale"},
        "tests/test_networks.py::test_a_large_mean_is_carried_as_two_numbers"),
    "a mask that depends on the slices": Mutation(
        "fast/blocks.py", {"part.shape, left == 0)": "part.shape)"},
        "tests/test_networks.py::test_a_block_drops_what_its_modules_drop"),
    "variance as E[x^2] - E[x]^2 in the fused block": Mutation(
        "fast/blocks.py",
        {"        sums, left = ShiftedSums(x), len(x)\n":
         "        sums, left = ShiftedSums(x), len(x)\n        sums.shift.zero_()\n"},
        "tests/test_networks.py::test_fused_block_as_accurate_as_pytorch"),
    "evaluation uses the batch's statistics": Mutation(
        "layers/modules.py", {"return self.training or self.running_mean is None": "return True"},
        "tests/test_layers.py::test_evaluation_depends_on_no_other_sample"),
    "one value per channel is let through": Mutation(
        "layers/modules.py", {"x.numel() == x.size(1):": "False:"},
        "tests/test_layers.py::test_same_errors"),
    "mask scaled by p": Mutation(
        "layers/functional.py", {"kept(x, p, shape).div_(1 - p)": "kept(x, p, shape).div_(p)"},
        "tests/test_dropout.py::test_dropout_keeps_shape_and_dtype"),
    "mask not scaled": Mutation(
        "layers/functional.py", {"kept(x, p, shape).div_(1 - p)": "kept(x, p, shape)"},
        "tests/test_dropout.py::test_dropout_keeps_shape_and_dtype"),
    "p is the probability to keep": Mutation(
        "layers/functional.py", {"round((1 - p) * 65536)": "round(p * 65536)"},
        "tests/test_dropout.py::test_dropout_drops_each_value_by_itself"),
    "neighbours share a random number": Mutation(
        "layers/functional.py", {".view(torch.int16)": ".view(torch.int16).repeat_interleave(2)"},
        "tests/test_dropout.py::test_dropout_drops_each_value_by_itself"),
    "Dropout2d drops single values": Mutation(
        "layers/modules.py", {"return torch.Size([*x.shape[:2], *[1] * (x.dim() - 2)])": "return x.shape"},
        "tests/test_dropout.py::test_dropout2d_drops_whole_maps"),
    "Dropout2d drops the same maps of all samples": Mutation(
        "layers/modules.py", {"return torch.Size([*x.shape[:2], *": "return torch.Size([1, x.shape[1], *"},
        "tests/test_dropout.py::test_dropout2d_drops_whole_maps"),
    "Dropout drops in evaluation": Mutation(
        "layers/modules.py", {"float(self.p) if self.training else 0.0": "float(self.p)"},
        "tests/test_dropout.py::test_dropout_at_the_limits_and_in_evaluation"),
    "fused backward without the statistics' part": Mutation(
        "fast/blocks.py", {"out.copy_(result.addcmul_(part, c).add_(d))": "out.copy_(result)"},
        "tests/test_networks.py::test_block_in_single_precision"),
    "fused block takes negative weights for positive": Mutation(
        "fast/blocks.py", {"if weight is None or weight.min().item() >= 0": "if True"},
        "tests/test_networks.py::test_block_in_single_precision"),
    "fused block forgets the scale of the mask in its derivative": Mutation(
        "fast/blocks.py", {"ctx.factor, ctx.eps = factor, eps": "ctx.factor, ctx.eps = 1.0, eps"},
        "tests/test_networks.py::test_block_in_single_precision"),
    "fused block lets windows live that keep no value": Mutation(
        "fast/blocks.py", {"relu_()).mul_(some)": "relu_())"},
        "tests/test_networks.py::test_a_weight_of_zero"),
    "fused block drops the values that Dropout keeps": Mutation(
        "fast/blocks.py", {"kept(part, p, part.shape": "kept(part, 1 - p, part.shape"},
        "tests/test_networks.py::test_the_fused_block_drops_at_the_rate_of_its_dropout"),
    "fused block forgets dropout when the statistics stand still": Mutation(
        "fast/blocks.py", {"return dropout(F.relu(batch_norm(": "return (F.relu(batch_norm("},
        "tests/test_networks.py::test_dropout_while_the_statistics_stand_still"),
    "integers are let through": Mutation(
        "layers/modules.py", {"if not x.is_floating_point()": "if False"},
        "tests/test_layers.py::test_dtypes_that_do_not_fit"),
    "a layer of another dtype is let through": Mutation(
        "layers/modules.py", {"each.dtype not in (x.dtype, accumulator(x))": "False"},
        "tests/test_layers.py::test_dtypes_that_do_not_fit"),
    "weights without a batch counter are refused": Mutation(
        "layers/modules.py", {'local_metadata.get("version", 1) < 2': "False"},
        "tests/test_layers.py::test_weights_from_before_the_batch_counter"),
    "weights that lost their batch counter are taken": Mutation(
        "layers/modules.py", {'local_metadata.get("version", 1) < 2': "True"},
        "tests/test_layers.py::test_weights_from_before_the_batch_counter"),
    "transforms meet the derivative written by hand": Mutation(
        "layers/functional.py", {"return not (torch.compiler": "return True or (torch.compiler"},
        "tests/test_layers.py::test_transforms_as_pytorch"),
    "transforms meet the fast mask": Mutation(
        "layers/functional.py", {"return not (torch.compiler": "return True or (torch.compiler"},
        "tests/test_dropout.py::test_dropout_under_vmap"),
    "forward mode meets the CNN's fused block": Mutation(
        "layers/functional.py", {" or forward_ad._current_level >= 0": ""},
        "tests/test_networks.py::test_unusual_uses_as_pytorch"),
    "random bits on the default device": Mutation(
        "layers/functional.py", {"dtype=torch.int64, device=\"cpu\"": "dtype=torch.int64"},
        "tests/test_dropout.py::test_dropout_on_a_default_device_of_another_kind"),
    "the fused block on the default device": Mutation(
        "fast/blocks.py", {"dtype=x.dtype, device=x.device": "dtype=x.dtype"},
        "tests/test_networks.py::test_unusual_uses_as_pytorch"),
    "batched gradients meet the fused backward": Mutation(
        "fast/blocks.py", {" or torch._C._functorch.is_legacy_batchedtensor(g)": ""},
        "tests/test_networks.py::test_unusual_uses_as_pytorch"),
    "dropout in place of nothing writes": Mutation(
        "layers/modules.py", {"        if (p := self.rate()) == 0:\n            return input\n":
                              "        p = self.rate()\n"},
        "tests/test_dropout.py::test_dropout_inplace_of_nothing_leaves_what_relu_saved"),
    "fused block drops at a rate that is no probability": Mutation(
        "fast/blocks.py", {"else dropout.rate()": "else dropout.p * dropout.training"},
        "tests/test_networks.py::test_a_rate_that_is_no_probability_any_more"),
    "fused block takes the place of a layer with hooks": Mutation(
        "fast/choice.py", {"module._forward_hooks or": "False or"},
        "tests/test_networks.py::test_touched_layers_are_called"),
    "fused block takes the place of a subclass": Mutation(
        "fast/choice.py", {"kind = type(module)": "kind = next((k for k in ORIGINAL if isinstance(module, k)), None)"},
        "tests/test_networks.py::test_touched_layers_are_called"),
    "oneDNN reads a bias that is not dense": Mutation(
        "fast/linear.py", {"bias.contiguous()": "bias"},
        "tests/test_linear.py::test_inputs_that_do_not_lie_densely"),
    "oneDNN's gradient of the weight is that of another batch": Mutation(
        "fast/linear.py", {"linear(g.t(), x.t())": "linear(g.t(), x.flip(0).t())"},
        "tests/test_linear.py::test_same_as_pytorch"),
    "fused block hides from global hooks": Mutation(
        "fast/choice.py", {"or _has_any_global_hook()": "or False"},
        "tests/test_networks.py::test_global_hooks_see_the_layers"),
    "fused block reads values that are not there": Mutation(
        "fast/choice.py", {"type(x) is Tensor and ": ""},
        "tests/test_networks.py::test_tensors_without_values"),
    "oneDNN hides from modes": Mutation(
        "fast/linear.py", {" and not torch._C._len_torch_dispatch_stack()": ""},
        "tests/test_linear.py::test_products_are_counted"),
    "oneDNN takes tensors of other kinds": Mutation(
        "fast/linear.py", {"type(each) in (Tensor, nn.Parameter) and": "True and"},
        "tests/test_linear.py::test_tensors_that_watch_what_is_done_to_them"),
    "oneDNN in forward mode": Mutation(
        "fast/linear.py", {"torch.backends.mkldnn.enabled and eager()": "torch.backends.mkldnn.enabled"},
        "tests/test_linear.py::test_forward_mode_derivatives"),
    "oneDNN takes float32 where autocast wants half precision": Mutation(
        "fast/linear.py", {' and not torch.is_autocast_enabled("cpu")': ""},
        "tests/test_linear.py::test_autocast"),
}

# Each line of its input, "FOLDER TEST…", is answered by pytest's exit code for these tests of that folder. What is
# imported before the fork is imported once for all.
SERVER = """
import gc, os, sys
import hypothesis.extra.pytestplugin, pytest, torch, torch.testing
from torch.autograd import gradcheck
gc.freeze()  # spares the children the collection of what was imported
for line in sys.stdin:
    folder, *tests = line.split()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        torch.set_num_threads(1)
        os._exit(pytest.main(["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", *tests]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run_tests():
    """A function that runs tests of a folder and returns pytest's exit code and output."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}) as server:
        def run(folder: Path, *tests: str) -> tuple[int, str]:
            print(folder, *tests, file=server.stdin, flush=True)
            return int(server.stdout.readline()), (folder / "log").read_text()

        yield run
        server.stdin.close()


def copied(folder: Path) -> Path:
    for source in SOURCES:
        (folder / source).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, folder / source)
    return folder


def test_unbroken_layers_pass(run_tests, tmp_path):
    """Without this a red test below would prove nothing."""
    code, log = run_tests(copied(tmp_path), *sorted({mutation.noticed_by for mutation in MUTATIONS.values()}))
    assert code == 0, log


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=[name.replace(" ", "-") for name in MUTATIONS])
def test_broken_layers_are_noticed(mutation, run_tests, tmp_path):
    if mutation.files == "fast/linear.py" and not linear.ONEDNN:
        pytest.skip("this PyTorch lacks oneDNN's operator")
    folder = copied(tmp_path)
    texts = {folder / name: (folder / name).read_text() for name in mutation.files.split()}
    for old, new in mutation.replacements.items():
        places = [(file, text.count(old)) for file, text in texts.items() if old in text]
        assert len(places) == 1 and places[0][1] == 1, f"stands not once in {mutation.files}: {old}"
        texts[places[0][0]] = texts[places[0][0]].replace(old, new)
    for file, text in texts.items():
        file.write_text(text)
    code, log = run_tests(tmp_path, mutation.noticed_by)
    assert code == pytest.ExitCode.TESTS_FAILED, log
    assert "SyntaxError" not in log and "NameError" not in log, log
