"""A trained network, out of its run's folder: read, checked, and asked. Nothing else is loaded."""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from store.dataset import normalize
from store.files import UserError, is_number, is_whole, read_file
from store.run import Run, RunFolder
from store.settings import Settings, without_defaults

Build = Callable[[Settings, int], nn.Module]  # of the settings and the number of classes


class Trained(NamedTuple):
    """A run's settings and its best network, as its folder tells them."""

    folder: RunFolder
    settings: Settings
    run: Run
    best: dict  # best.pt: the weights as "network", and the row of their epoch

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.run.data["classes"]]


def read_trained(folder: RunFolder, network: str, build: Build) -> Trained:
    """What is needed of a run's folder; UserError if it is missing, damaged, or another network's.

    Nothing large is built or read before it is known to fit.
    """
    run = folder.read()
    if run.config.get("network", network) != network:
        raise UserError(f"{folder.folder} is a run of the {run.config['network']}; evaluate it "
                        "with its main.py")
    if run.is_copy:
        raise UserError(f"{folder.folder} is a copy of the run {run.own_name}, as its config.json "
                        "says; give it that name again")
    try:
        with as_value_errors():
            settings = Settings.read(run.config)
            classes = run.data["classes"]
            if not isinstance(classes, list) or not {"source", "fingerprint"} <= run.data.keys():
                raise ValueError("it lacks its data")
            with torch.device("meta"):
                blank = build(settings, len(classes))
    except ValueError as error:
        raise UserError(f"{folder.folder / 'config.json'} is missing or damaged ({error}), so the "
                        "run cannot be evaluated; retrain it") from error
    identity = run_identity(settings, run.fingerprint)
    return Trained(folder, settings, run, read_best(folder, blank, identity))


def read_best(folder: RunFolder, blank: nn.Module, identity: dict) -> dict:
    """The weights in best.pt of that run, as "network", for one like `blank`; and their row."""
    path = folder.folder / "best.pt"
    try:
        with as_value_errors():
            content = read_file(path, most_bytes(blank), links=False)
            if not is_whole(content):
                raise ValueError("it is not whole")
            best = read_state(content)
            if not all(is_number(best[key]) for key in ("epoch", "test_loss", "test_acc")):
                raise ValueError("its metrics are not finite")
            refuse_unlike(best["network"], blank.state_dict())
            if "identity" in best and without_defaults(best["identity"]) != identity:
                raise ValueError("it is of another run")
            if not all(value.isfinite().all() for value in best["network"].values()):
                raise ValueError("it holds weights that are not finite")
            return best
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); a run has it after its first "
                        "epoch") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged, or not the network of its config.json ({error}); "
                        "delete it and run the same training command again, which writes "
                        "it") from error


def restore(trained: Trained, build: Build, device: torch.device) -> nn.Module:
    """The run's best network on the device, in evaluation mode."""
    network = build(trained.settings, len(trained.classes))
    network.load_state_dict(trained.best["network"])
    return network.to(device, memory_format=torch.channels_last).eval()


@torch.no_grad()
def class_probabilities(network: nn.Module, pictures: Tensor) -> Tensor:
    """Softmax of the network's logits for `pictures`, uint8, in float64."""
    return torch.cat([network(normalize(part).double()).softmax(1) for part in pictures.split(250)])


def confusion_matrix(labels: Tensor, predicted: Tensor, n: int) -> Tensor:
    """How many pictures of class i were taken for class j, on the CPU: n x n."""
    return torch.bincount(labels.cpu() * n + predicted.cpu(), minlength=n * n).view(n, n)


def run_identity(settings: Settings, fingerprint: str) -> dict:
    """What the files of one run share."""
    return {**settings.identity(), "fingerprint": fingerprint}


# Tensors out of a file


@contextlib.contextmanager
def as_value_errors() -> Iterator[None]:
    """Whatever a file's content leads to within is a ValueError; the machine's trouble stays."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError | ValueError) or is_out_of_memory(error):
            raise
        lacks = f"it has no {error}" if isinstance(error, KeyError) else type(error).__name__
        raise ValueError(lacks) from error


def is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "alloc_cpu", "alloc_failed", "bad_alloc")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)


def most_bytes(network: nn.Module) -> int:
    """More bytes than a file of this network has: its weights four times, and the rows."""
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    return 5 * weights + 2 ** 24


def read_state(content: bytes) -> dict:
    """The state in a whole file of torch.save: tensors and plain values alone."""
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    return state


def refuse_unlike(state: dict, own: dict) -> None:
    """Raise ValueError unless `state` has the tensors of `own`: keys, shapes and types."""
    if not isinstance(state, dict) or state.keys() != own.keys():
        raise ValueError("it has other names than the network")
    for key, value in own.items():
        found = state[key]
        if isinstance(value, dict):
            refuse_unlike(found, value)
        elif not isinstance(found, Tensor) or signature(found) != signature(value):
            raise ValueError(f"its {key} is not like the network's")


def signature(x: Tensor) -> tuple:
    return x.shape, x.dtype, x.layout, x.is_neg(), x.requires_grad


def on_cpu(state):
    """A copy of nested dicts and lists, its tensors on the CPU; of a GPU's, once `copied`."""
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    if isinstance(state, list):
        return [on_cpu(value) for value in state]
    if isinstance(state, Tensor):
        return state.detach().to("cpu", non_blocking=state.is_cuda, copy=True)
    return state


def copied(device: torch.device) -> Callable[[], None]:
    """What waits, in any thread, for the copies begun. The device makes them before it goes on."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event(blocking=True)
    event.record()
    return event.synchronize
