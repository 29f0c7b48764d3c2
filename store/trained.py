"""A trained network, out of its run's folder: read, checked, and asked. Nothing else is loaded."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from load_data import normalize
from store.files import MAX_CHECKPOINT, UserError, read_file
from store.run import Run, RunFolder, intact
from store.settings import Settings

Build = Callable[[Settings, int], nn.Module]  # of the settings and the number of classes
UNUSABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, OverflowError,
            pickle.UnpicklingError)


class Trained(NamedTuple):
    """A run's settings and its best network, as its folder tells them."""

    folder: RunFolder
    settings: Settings
    run: Run
    best: dict  # best.pt: the weights as "network", and the row of their epoch

    @property
    def classes(self) -> list[str]:
        return [str(name) for name in self.run.data["classes"]]


def read_trained(folder: RunFolder, network: str) -> Trained:
    """What is needed of a run's folder; UserError if it is missing, damaged, or another network's."""
    run = folder.read()
    if run.config.get("network", network) != network:
        raise UserError(f"{folder.folder} is a run of the {run.config['network']}; evaluate it with its "
                        "main.py")
    try:
        settings = Settings.read(run.config)
        if not isinstance(run.data["classes"], list) or not {"source", "fingerprint"} <= run.data.keys():
            raise ValueError("it lacks its data")
    except (KeyError, ValueError) as error:
        raise UserError(f"{folder.folder / 'config.json'} is missing or damaged ({error}), so the run "
                        "cannot be evaluated; retrain it") from error
    return Trained(folder, settings, run, read_best(folder.folder / "best.pt"))


def read_best(path: Path) -> dict:
    """The network in best.pt, as "network", and the row of its epoch."""
    try:
        content = read_file(path, MAX_CHECKPOINT)
    except ValueError:
        content = b""  # damaged, see below
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); a run has it after its first "
                        "epoch") from error
    try:
        if not intact(content):
            raise ValueError("it is not whole")
        best = read_state(content)
        return {**best, "epoch": int(best["epoch"]),
                **{key: float(best[key]) for key in ("test_loss", "test_acc")}}
    except UNUSABLE as error:
        raise UserError(f"{path} is damaged; run the same training command again, which rewrites "
                        "it") from error


def restore(trained: Trained, build: Build, device: torch.device) -> nn.Module:
    """The run's best network on the device, in evaluation mode."""
    try:
        network = build(trained.settings, len(trained.classes))
        refuse_unlike(trained.best["network"], network.state_dict())
    except UNUSABLE as error:  # settings and weights come from two files, either may be damaged
        raise UserError(f"config.json and best.pt of {trained.folder.folder} do not belong together "
                        f"({error}); retrain the run") from error
    network.load_state_dict(trained.best["network"])
    return network.to(device, memory_format=torch.channels_last).eval()


@torch.no_grad()
def class_probabilities(network: nn.Module, pictures: Tensor) -> Tensor:
    """Softmax of the network's answers to `pictures`, uint8, in float64."""
    return torch.cat([network(normalize(part).double()).softmax(1) for part in pictures.split(250)])


def confusion_matrix(labels: Tensor, answers: Tensor, n: int) -> Tensor:
    """How many pictures of class i were taken for class j, on the CPU: n x n."""
    return torch.bincount(labels.cpu() * n + answers.cpu(), minlength=n * n).view(n, n)


# Tensors out of a file


def read_state(content: bytes) -> dict:
    """The state in a file of torch.save; one of UNUSABLE for what holds none."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except RuntimeError as error:  # PyTorch's for most damage, but for no memory as well
        if is_out_of_memory(error):
            raise
        raise ValueError("it cannot be read") from error
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    return state


def is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (isinstance(error, MemoryError | torch.OutOfMemoryError)
            or "out of memory" in text or "can't allocate memory" in text or "alloc_cpu" in text)


def refuse_unlike(state: dict, own: dict) -> None:
    """Raise ValueError unless `state` has the tensors of `own`: keys, shapes, types, dense memory.

    The optimizer's kernel reads as many values as the weights have, whatever the state holds.
    """
    if not isinstance(state, dict) or state.keys() != own.keys():
        raise ValueError("it has other names than the network")
    for key, value in own.items():
        found = state[key]
        if isinstance(value, dict):
            refuse_unlike(found, value)
        elif not (isinstance(found, Tensor) and found.device.type == "cpu"
                  and found.layout == torch.strided and not found.is_quantized
                  and (found.shape, found.dtype) == (value.shape, value.dtype) and is_dense(found)):
            raise ValueError(f"its {key} is not like the network's")


def is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
