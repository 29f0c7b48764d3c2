"""Break the code on purpose and see that a test turns red: a test that cannot fail is worth nothing."""

import pytest
from forked import copied, edit, run_in  # noqa: F401

from fast import linear

SOURCES = ("fast", "layers", "store", "mlp", "cnn", "lab", "load_data.py", "training.py", "pyproject.toml",
           *(f"tests/{name}.py" for name in ("conftest", "comparison", "forked", "in_process", "test_layers",
                                             "test_dropout", "test_networks", "test_linear", "test_agreement")))
FUNCTIONAL, MODULES, NORMALIZE = "layers/functional.py", "layers/modules.py", "fast/normalize.py"
BLOCKS, CHOICE, AGREEMENT, LINEAR = "fast/blocks.py", "fast/choice.py", "fast/agreement.py", "fast/linear.py"

# The test that has to notice: what is broken, in which file, the text there, what it becomes.
MUTATIONS = {
    "layers::test_training_and_evaluation_on_each_device": [
        ("biased running variance", MODULES, "variance * (n / (n - 1))", "variance"),
        ("unbiased variance normalizes", FUNCTIONAL, "(x - mean).square().mean(dims)", "x.var(dims)"),
        ("momentum the wrong way round", MODULES, "mean.to(self.running_mean.dtype), momentum)",
         "mean.to(self.running_mean.dtype), 1 - momentum)"),
        ("cumulative average forgets its count", MODULES, "1 / float(count)", "0.1")],
    "layers::test_running_statistics_are_no_part_of_the_graph": [
        ("statistics carry gradient into the buffers", MODULES, "    @torch.no_grad()\n    def track", "    def track")],
    "layers::test_far_from_zero_as_accurate_as_pytorch": [
        ("variance as E[x^2] - E[x]^2", FUNCTIONAL, "(x - mean).square().mean(dims)",
         "x.square().mean(dims) - mean.flatten().square()"),
        ("by hand: variance as E[x^2] - E[x]^2", NORMALIZE, "variance = d.square().mean(dims, keepdim=True)",
         "variance = wide.square().mean(dims, keepdim=True) - mean.square()"),
        ("by hand: rounded mean", NORMALIZE, "        d -= error\n", "")],
    "layers::test_a_large_mean_is_carried_as_two_numbers": [
        ("by hand: rounded mean in the derivative", NORMALIZE, ".sub_(error)", "")],
    "layers::test_normalize_is_its_definition": [
        ("by hand: unbiased variance", NORMALIZE, "variance = d.square().mean(dims, keepdim=True)",
         "variance = d.var(dims, keepdim=True)")],
    "layers::test_first_and_second_derivatives": [
        ("statistics are constants to the derivatives", FUNCTIONAL, "return mean.flatten(), (x - mean)",
         "return mean.flatten().detach(), (x - mean)"),
        ("by hand: statistics are constants", NORMALIZE, "        dx = torch.addcmul(", "        dx = 0 * torch.addcmul(")],
    "layers::test_evaluation_depends_on_no_other_sample": [
        ("evaluation uses the batch's statistics", MODULES, "return self.training or self.running_mean is None",
         "return True")],
    "layers::test_same_errors": [
        ("one value per channel is let through", MODULES, "x.numel() == x.size(1):", "False:")],
    "layers::test_dtypes_that_do_not_fit": [
        ("integers are let through", MODULES, "if not x.is_floating_point()", "if False"),
        ("a layer of another dtype is let through", MODULES, "each.dtype not in (x.dtype, accumulator(x))", "False")],
    "layers::test_weights_from_before_the_batch_counter": [
        ("weights without a batch counter are refused", MODULES, 'local_metadata.get("version", 1) < 2', "False"),
        ("weights that lost their batch counter are taken", MODULES, 'local_metadata.get("version", 1) < 2', "True")],
    "dropout::test_dropout_keeps_shape_and_dtype": [
        ("mask scaled by p", FUNCTIONAL, "(dropout_mask(x, p, shape) / (1 - p))", "(dropout_mask(x, p, shape) / p)"),
        ("mask not scaled", FUNCTIONAL, "(dropout_mask(x, p, shape) / (1 - p))", "dropout_mask(x, p, shape)")],
    "dropout::test_gaussian_dropout_has_the_mean_and_variance_of_dropout": [
        ("noise of half the variance", FUNCTIONAL, "math.sqrt(p / (1 - p))", "math.sqrt(p / (1 - p) / 2)")],
    "dropout::test_dropout_drops_each_value_by_itself": [
        ("p is the probability to keep", FUNCTIONAL, "round((1 - p) * 65536)", "round(p * 65536)"),
        ("neighbours share a random number", FUNCTIONAL, ".view(torch.int16)",
         ".view(torch.int16).repeat_interleave(2)")],
    "dropout::test_dropout2d_drops_whole_maps": [
        ("Dropout2d drops single values", MODULES, "return torch.Size([*x.shape[:2], *[1] * (x.dim() - 2)])",
         "return x.shape"),
        ("Dropout2d drops the same maps of all samples", MODULES, "return torch.Size([*x.shape[:2], *",
         "return torch.Size([1, x.shape[1], *")],
    "dropout::test_dropout_at_the_limits_and_in_evaluation": [
        ("Dropout drops in evaluation", MODULES, "float(self.p) if self.training else 0.0", "float(self.p)")],
    "dropout::test_dropout_inplace_of_nothing_leaves_what_relu_saved": [
        ("dropout in place of nothing writes", MODULES,
         "        if (p := self.rate()) == 0:\n            return input\n", "        p = self.rate()\n")],
    "dropout::test_dropout_under_vmap": [
        ("random bits that vmap cannot tell apart", FUNCTIONAL, "x.new_empty(n // 4 + 1, dtype=torch.int64)",
         "torch.empty(n // 4 + 1, dtype=torch.int64)")],
    "dropout::test_dropout_on_a_default_device_of_another_kind": [
        ("random bits on the default device", FUNCTIONAL, "x.new_empty(n // 4 + 1, dtype=torch.int64)",
         "torch.empty(n // 4 + 1, dtype=torch.int64)")],
    "networks::test_compiled_dropout": [
        ("random bits where PyTorch compiles", FUNCTIONAL, " and not torch.compiler.is_compiling()", "")],
    "networks::test_a_block_drops_what_its_modules_drop": [
        ("a mask that depends on the slices", BLOCKS, "bits[own].lt_", "bits[:len(part)].lt_")],
    "networks::test_fused_block_as_accurate_as_pytorch": [
        ("fused: variance as E[x^2] - E[x]^2", BLOCKS, "dtype=accumulator(x)).to(x.dtype)",
         "dtype=accumulator(x)).to(x.dtype).zero_()")],
    "networks::test_block_in_single_precision": [
        ("fused: backward without the statistics' part", BLOCKS, "result.addcmul_(part, c).add_(d)", "pass"),
        ("fused: negative weights are taken for positive", BLOCKS, "if weight is None or weight.min().item() >= 0",
         "if True"),
        ("fused: the derivative forgets the scale of the mask", BLOCKS, "ctx.n = 1 / (1 - p), eps", "ctx.n = 1.0, eps"),
        ("fused: the convolution's bias has a gradient", BLOCKS, "torch.zeros_like(conv_bias)",
         "torch.ones_like(conv_bias)"),
        ("fused: the kernel's gradient is that of one slice", BLOCKS, "dkernel.add_(dslice)", "dslice")],
    "networks::test_the_tracked_mean_has_the_bias_of_the_convolution": [
        ("fused: the bias is not tracked", BLOCKS, "(0 if conv_bias is None else conv_bias)", "0"),
        ("fused: evaluation without the bias", BLOCKS, "shift if conv_bias is None else shift + conv_bias", "shift")],
    "networks::test_a_weight_of_zero": [
        ("fused: windows live that keep no value", BLOCKS, "relu_().mul_(some)", "relu_()")],
    "networks::test_the_fused_block_drops_at_the_rate_of_its_dropout": [
        ("fused: drops what Dropout keeps", BLOCKS, "lt_(threshold(p))", "lt_(threshold(1 - p))")],
    "networks::test_dropout_while_the_statistics_stand_still": [
        ("fused: forgets dropout when the statistics stand still", BLOCKS, "return dropout(F.relu(evaluated(",
         "return (F.relu(evaluated(")],
    "networks::test_the_mlps_block_is_its_definition": [
        ("the MLP's block forgets dropout", CHOICE, "return dropout(F.relu(normalize(x, norm)))",
         "return F.relu(normalize(x, norm))")],
    "networks::test_unusual_uses_as_pytorch": [
        ("forward mode meets the fused block", AGREEMENT, " or forward_ad._current_level >= 0", ""),
        ("fused: on the default device", BLOCKS, 'dtype=x.dtype, device="cpu"', "dtype=x.dtype"),
        ("fused: batched gradients meet the backward by hand", BLOCKS,
         " or torch._C._functorch.is_legacy_batchedtensor(g)", "")],
    "networks::test_a_rate_that_is_no_probability_any_more": [
        ("fused: drops at a rate that is no probability", "fast/conditions.py", "else dropout.rate()",
         "else dropout.p * dropout.training")],
    "networks::test_touched_layers_are_called": [
        ("a layer with hooks", AGREEMENT, 'own["_forward_hooks"] or own["_forward_pre_hooks"]',
         'own["_forward_pre_hooks"]'),
        ("a layer with a forward of its own", AGREEMENT, '"forward" in own or', ""),
        ("a subclass of a layer", CHOICE, "type(norm) is BatchNorm2d\n", "isinstance(norm, BatchNorm2d)\n"),
        ("a convolution with a stride", "fast/conditions.py", "conv.stride == conv.dilation == (1, 1)", "True")],
    "networks::test_global_hooks_see_the_layers": [
        ("global hooks", AGREEMENT, " or _has_any_global_hook()", "")],
    "networks::test_tensors_that_watch_what_is_done_to_them": [
        ("tensors of other kinds", AGREEMENT, "if type(x) is Tensor and", "if")],
    "agreement::test_who_changes_what_pytorch_computes_changes_ours": [
        ("a TorchFunctionMode", AGREEMENT, "all(type(mode) is DeviceContext for mode in modes)", "True"),
        ("a TorchDispatchMode", AGREEMENT, "not torch._C._len_torch_dispatch_stack()", "True"),
        ("a function replaced in torch.nn.functional", AGREEMENT, "pieces() == ORIGINAL", "True")],
    "agreement::test_a_default_device_does_not_cost_the_fast_path": [
        ("a default device is taken for a mode that watches", AGREEMENT, "type(mode) is DeviceContext", "False")],
    "agreement::test_the_agreement_is_reached_once_per_variant": [
        ("the agreement is asked in every step", AGREEMENT, "@functools.cache\ndef tried", "def tried")],
    "agreement::test_symbolic_trace_with_the_layers_as_leaves": [
        ("a module that is made in each step", "cnn/model.py", "self.no_dropout))", "nn.Identity()))")],
    "linear::test_inputs_that_do_not_lie_densely": [
        ("oneDNN reads a bias that is not dense", LINEAR, "bias.contiguous()", "bias")],
    "linear::test_same_as_pytorch": [
        ("oneDNN's gradient of the weight is that of another batch", LINEAR, "linear(g.t(), x.t())",
         "linear(g.t(), x.flip(0).t())")],
    "linear::test_products_are_counted": [
        ("oneDNN hides from modes", LINEAR, " and not torch._C._len_torch_dispatch_stack()", "")],
    "linear::test_tensors_that_watch_what_is_done_to_them": [
        ("oneDNN takes tensors of other kinds", LINEAR, "type(each) in (Tensor, nn.Parameter) and", "True and")],
    "linear::test_forward_mode_derivatives": [
        ("oneDNN in forward mode", LINEAR, "torch.backends.mkldnn.enabled and eager()",
         "torch.backends.mkldnn.enabled")],
    "linear::test_what_is_not_single_precision_is_left_to_pytorch": [
        ("oneDNN takes float32 where autocast wants half precision", LINEAR,
         ' and not torch.is_autocast_enabled("cpu")', "")],
}
CASES = [pytest.param(test, *mutation, id=what.replace(" ", "-"))
         for test, mutations in MUTATIONS.items() for what, *mutation in mutations]


def pytest_in(*tests: str) -> str:
    tests = [f"tests/test_{test}.py::{name}" for test, name in (test.split("::") for test in tests)]
    return f"sys.exit(pytest.main(['-x', '-q', '--assert=plain', '-p', 'no:cacheprovider', *{tests}]))"


def test_unbroken_code_passes(run_in, tmp_path):  # noqa: F811
    """Without this a red test below would prove nothing."""
    code, log, said = run_in(copied(tmp_path, *SOURCES), pytest_in(*MUTATIONS))
    assert code == 0, log + said


@pytest.mark.parametrize("test, file, old, new", CASES)
def test_broken_code_is_noticed(test, file, old, new, run_in, tmp_path):  # noqa: F811
    if file == LINEAR and not linear.ONEDNN:
        pytest.skip("this PyTorch lacks oneDNN's operator")
    edit(copied(tmp_path, *SOURCES), {file: {old: new}})
    code, log, said = run_in(tmp_path, pytest_in(test))
    assert code == pytest.ExitCode.TESTS_FAILED, log + said
    assert "SyntaxError" not in log and "NameError: name" not in log, log
