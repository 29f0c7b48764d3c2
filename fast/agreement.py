"""A faster function takes the place of modules only where nobody could tell.

    @sooner(fast.choice.CNN_BLOCK)
    def block(x, conv, norm, dropout):
        return F.max_pool2d(dropout(F.relu(norm(conv(x)))), 2)

`block` is what counts. A `Faster` may compute it: for exactly the classes that it was written for,
that nothing watches or changes, and only after it agreed with `block` in this process. So whoever
edits a layer or a block sees the edit train: the faster function then differs, and a line says
that the modules run.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._device import DeviceContext

import layers.functional
import layers.modules
from layers import BatchNorm, BatchNorm1d, BatchNorm2d, Dropout, Dropout2d

PLAIN = (nn.Parameter, Tensor, type(None))
OURS = (BatchNorm1d, BatchNorm2d, Dropout, Dropout2d)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of a tensor's error, relative to its
# norm or, for a gradient, should that be larger, to that of y: it may be zero but for rounding


def pieces() -> list:
    """All through which a layer acts, and anyone may put something else in its place."""
    return [*(getattr(kind, name) for kind in (*OURS, nn.Conv2d, nn.Linear, nn.Identity)
              for name in ("__call__", "forward")),
            nn.Conv2d._conv_forward, F.relu, F.max_pool2d, F.linear, F.conv2d,
            *(vars(BatchNorm)[name] for name in ("track", "check_input", "uses_batch_statistics")),
            Dropout.rate, Dropout.mask_shape, Dropout2d.mask_shape,
            *(vars(layers.modules)[name] for name in ("batch_norm", "batch_statistics", "dropout")),
            layers.functional.dropout_mask]


ORIGINAL = pieces()  # as they were written


@dataclass(frozen=True, eq=False)
class Faster:
    """A function of x and modules; `variant` tells which of its variants would compute them, if
    any, and `trial` gives a small input that takes all branches of a variant: x, the modules, and
    options of the function."""

    what: str
    function: Callable[..., Tensor]
    variant: Callable[..., Hashable | None]
    trial: Callable[..., tuple]


def sooner(*candidates: Faster) -> Callable:
    """Have a function of x and modules computed by the first candidate that can."""
    def decorate(definition: Callable) -> Callable:
        @functools.wraps(definition)
        def call(x: Tensor, *modules: nn.Module) -> Tensor:
            return (choose(candidates, definition, x, *modules) or definition)(x, *modules)
        return call
    return decorate


def choose(candidates: tuple[Faster, ...], definition: Callable, x: Tensor,
           *modules: nn.Module) -> Callable | None:
    """The function of the first candidate that can compute these and agrees with the definition."""
    if type(x) is Tensor and eager() and unwatched() and all(map(untouched, modules)):
        for each in candidates:
            variant = each.variant(x, *modules)
            if variant is not None and agrees(each, definition, variant):
                return each.function
    return None


# Where somebody could tell


def eager() -> bool:
    """Whether operators just run, under no compiler, tracer, torch.func or forward-mode AD."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing()
                or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)


def unwatched() -> bool:
    """Whether no mode sees the operators, and the layers are as they were written.

    torch.device("cpu") as a context and set_default_device are modes too, but watch nothing.
    """
    modes = map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))
    return (not torch._C._len_torch_dispatch_stack()
            and all(type(mode) is DeviceContext for mode in modes) and pieces() == ORIGINAL)


def untouched(module: nn.Module) -> bool:
    """Whether no hook, wrapper or foreign kind of tensor is in a module."""
    own = module.__dict__
    if isinstance(module, torch.jit.ScriptModule):  # keeps its parameters elsewhere
        return False
    for each in (*own["_parameters"].values(), *own["_buffers"].values()):
        if type(each) not in PLAIN:
            return False
    return not ("forward" in own or own["_forward_hooks"] or own["_forward_pre_hooks"]
                or own["_backward_hooks"] or own["_backward_pre_hooks"]
                or module._compiled_call_impl is not None or _has_any_global_hook())


# Agreement


OUTCOMES: dict[str, str] = {}  # by what a candidate is: "used", or why not


def agrees(candidate: Faster, definition: Callable, variant: Hashable) -> bool:
    """Whether a candidate gives what the definition does; want of memory may pass."""
    try:
        return tried(candidate, definition, variant)
    except torch.OutOfMemoryError:
        return False


@functools.cache
def tried(candidate: Faster, definition: Callable, variant: Hashable) -> bool:
    """`agrees`, once in a process; if not, one line says so, whatever the number of variants."""
    try:
        fault = difference(candidate, definition, variant)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no compiler, a card that it does not know
        fault = error
    if fault and OUTCOMES.get(candidate.what, "used") == "used":
        manner = "does not work here" if isinstance(fault, Exception) else (
            "differs from the modules, so these run")
        reason = say_slower(f"{candidate.what} {manner}", fault)
        OUTCOMES[candidate.what] = f"not used: {reason}"
    OUTCOMES.setdefault(candidate.what, "used")
    return not fault


def difference(candidate: Faster, definition: Callable, variant: Hashable) -> str:
    """The first result in which candidate and definition differ, in words; empty if none."""
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(gpus), plain_modes():
        found = outcome(candidate.function, candidate, variant)
        expected = outcome(definition, candidate, variant)
    limit, least = TOLERANCE[found["y"].dtype], expected["y"].double().norm().cpu()
    for name, value in expected.items():
        value, other = value.double().cpu(), found[name].double().cpu()
        error = (other - value).norm()
        scale = value.norm().clamp(min=least if name.startswith("the gradient") else 0)
        if value.shape != other.shape or not error <= limit * scale:
            return f"{name} is off by {error / scale:.1g}"
    return ""


@contextlib.contextmanager
def plain_modes():
    """The modes of a process that nobody has changed, whatever is in force outside."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def outcome(function: Callable, candidate: Faster, variant: Hashable) -> dict[str, Tensor]:
    """What a block computes, its gradients, what it tracks, and the random numbers it leaves."""
    torch.manual_seed(0)
    x, modules, options = candidate.trial(variant)
    half = options.pop("half", False)
    options = options if function is candidate.function else {}
    torch.manual_seed(1)
    inputs = {"x": x} | {f"{type(module).__name__}'s {name}": parameter for module in modules
                         for name, parameter in module.named_parameters()}
    if not any(values.requires_grad for values in inputs.values()):
        inputs = {}  # a trial without derivatives
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        y = function(x.requires_grad_(bool(inputs)), *modules, **options)
    g = torch.arange(y.numel(), device=y.device).view(y.shape).cos().to(y.dtype)
    # of a sum: to be given g, torch.autograd imports sympy, which takes a third of a second
    gradients = torch.autograd.grad((y * g).sum(), list(inputs.values()), allow_unused=True,
                                    materialize_grads=True) if inputs else []
    tracked = {name: buffer for module in modules for name, buffer in module.named_buffers()}
    return {"y": y.detach(), **tracked, "the next random number": torch.rand(1, device=x.device)
            } | {f"the gradient of {name}": gradient
                 for name, gradient in zip(inputs, gradients, strict=True)}


def say_slower(what: str, why: str | Exception) -> str:
    """Where a faster way does not work, one line says so, and the plain one is taken."""
    reason = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else why
    reason = " ".join(reason.split())[:200]
    print(f"{what}, which is slower: {reason}", file=sys.stderr)
    return reason
