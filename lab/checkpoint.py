"""A run's checkpoint taken up: whatever the file holds, nothing but a fitting state is loaded."""

import io
import sys
from collections.abc import Callable

import torch
from torch import nn

from load_data import Data
from store.files import UserError, is_number, one_line
from store.run import COLUMNS, RunFolder
from store.settings import Settings, without_defaults
from store.trained import UNUSABLE, read_state, refuse_unlike
from training import Trainer


def identity(settings: Settings, data: Data) -> dict:
    """What a checkpoint must share with the run that takes it up."""
    return {**settings.identity(), "fingerprint": data.fingerprint}


def as_bytes(state: dict) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def checkpoint_of(trainer: Trainer) -> bytes:
    return as_bytes({"identity": identity(trainer.settings, trainer.data), **trainer.state_dict()})


def best_of(trainer: Trainer) -> bytes:
    return as_bytes({"network": trainer.best_weights, **trainer.best})


def take_up(folder: RunFolder, new_trainer: Callable[[], Trainer]) -> Trainer:
    """A trainer at the last usable checkpoint of the run, or a new one.

    Trouble of the machine, such as no memory, is raised: it is no verdict on a file. A run that was
    finished never starts again in silence: UserError.
    """
    trainer = new_trainer()
    wanted = identity(trainer.settings, trainer.data)
    for path, content in folder.checkpoints(largest(trainer.network)):
        try:
            state = read_state(content)
            if without_defaults(state["identity"]) != wanted:
                raise ValueError("it belongs to another experiment")
            refuse_misfit(state, trainer.network)
        except UNUSABLE as error:
            reason = str(error) if type(error) is ValueError else type(error).__name__
            print(one_line(f"{path} is no usable checkpoint ({reason}) and is not used"), file=sys.stderr)
            continue
        trainer.load_state_dict(state)
        if path.name != "checkpoint.pt":
            folder.step_back()  # or the next one would push it out
        return trainer
    if result := folder.result():
        raise UserError(f"{folder.folder} is finished with {result['epochs']} epochs, but has no usable "
                        "checkpoint to go on from; delete the folder to retrain it")
    return trainer


def largest(network: nn.Module) -> int:
    """More bytes than a checkpoint of this network has: four times its weights, and the rows."""
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    return 5 * weights + 2 ** 24


def refuse_misfit(state: dict, network: nn.Module) -> None:
    """Raise one of UNUSABLE unless the state is one of this very network, of so many epochs."""
    rows, own = state["rows"], network.state_dict()
    if ([row["epoch"] for row in rows] != list(range(1, len(rows) + 1)) or state["best"] not in rows
            or not all(tuple(row) == COLUMNS and all(map(is_number, row.values())) for row in rows)):
        raise ValueError("its metrics are not what was saved")
    refuse_unlike(state["network"], own)
    refuse_unlike(state["best_weights"], own)
    refuse_unlike(state["optimizer"]["state"], {
        i: {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
        for i, parameter in enumerate(network.parameters())})
