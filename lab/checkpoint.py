"""A run's checkpoint taken up: whatever the file holds, nothing but a fitting state is loaded."""

import io
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from load_data import Data
from store.files import is_number, one_line
from store.run import COLUMNS, RunFolder
from store.settings import Settings, without_defaults
from store.trained import copied, judging, largest, read_state, refuse_unlike
from training import Trainer


class Lost(Exception):
    """A finished run cannot go on, and starting again would overwrite it."""


def identity(settings: Settings, data: Data) -> dict:
    """What a checkpoint must share with the run that takes it up."""
    return {**settings.identity(), "fingerprint": data.fingerprint}


def as_bytes(state: dict) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
    except RuntimeError as error:  # "unexpected pos": the buffer could not grow
        raise MemoryError("for a checkpoint") from error
    return buffer.getvalue()


def files_of(trainer: Trainer) -> Callable[[], tuple[bytes, dict[str, bytes]]]:
    """checkpoint.pt of now and, if the last epoch is the best, its files: see best_of.

    The state is copied at once. What is returned waits for the device and makes the bytes: for
    another thread, while the trainer goes on.
    """
    state = {"identity": identity(trainer.settings, trainer.data), **trainer.state_dict()}
    wait = copied(trainer.data.train.labels.device)

    def files() -> tuple[bytes, dict[str, bytes]]:
        wait()
        return as_bytes(state), best_of(state) if state["best"] is state["rows"][-1] else {}

    return files


def best_of(state: dict) -> dict[str, bytes]:
    """The files that tell of the best epoch: its weights, and the classes that it predicted."""
    files = {"best.pt": as_bytes({"network": state["best_weights"], **state["best"]})}
    if state.get("best_predictions"):  # older checkpoints have none
        predictions = io.BytesIO()
        np.savez_compressed(predictions, **state["best_predictions"])
        files["predictions.npz"] = predictions.getvalue()
    return files


def take_up(folder: RunFolder, new_trainer: Callable[[], Trainer]) -> Trainer:
    """A trainer at the last usable checkpoint of the run, or a new one.

    Trouble of the machine, such as no memory, is raised: it is no verdict on a file. A run that was
    finished never starts again in silence: Lost.
    """
    trainer = new_trainer()
    wanted = identity(trainer.settings, trainer.data)
    for path, content in folder.checkpoints(largest(trainer.network)):
        try:
            with judging():
                state = read_state(content)
                if without_defaults(state["identity"]) != wanted:
                    raise ValueError("it belongs to another experiment")
                refuse_misfit(state, trainer.network)
        except ValueError as error:
            note = f"{path} is no usable checkpoint ({error}) and is not used"
            print(one_line(note), file=sys.stderr)
            continue
        trainer.load_state_dict(state)
        if path.name != "checkpoint.pt":
            folder.step_back()  # or the next one would push it out
        return trainer
    if result := folder.result():
        raise Lost(f"it was finished with {result['epochs']} epochs, but has no usable checkpoint "
                   "to go on from; delete its folder to retrain it")
    return trainer


def refuse_misfit(state: dict, network: nn.Module) -> None:
    """Raise an error unless the state is one of this very network, of so many epochs."""
    rows, own = state["rows"], network.state_dict()
    if not all(tuple(row) == COLUMNS and all(map(is_number, row.values())) for row in rows):
        raise ValueError("its metrics are no numbers")
    if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)) or state["best"] not in rows:
        raise ValueError("its metrics are not what was saved")
    refuse_unlike(state["network"], own)
    refuse_unlike(state["best_weights"], own)
    refuse_unlike(state["optimizer"]["state"], {
        i: {"step": torch.zeros(()), "exp_avg": weight.detach(), "exp_avg_sq": weight.detach()}
        for i, weight in enumerate(network.parameters())})
