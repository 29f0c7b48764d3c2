"""A run's checkpoint resumed: whatever the file holds, nothing but a fitting state is loaded."""

import io
from collections.abc import Callable

import numpy as np
import torch

from store.files import UserError, is_number, sealed
from store.run import COLUMNS, RunFolder
from store.settings import without_defaults
from store.trained import (
    as_value_errors,
    copied,
    most_bytes,
    read_state,
    refuse_unlike,
    run_identity,
)
from training import Trainer

FORMAT = 1  # of a checkpoint: another number is for another version of this program


class Lost(Exception):
    """A finished run cannot go on, and starting again would overwrite it."""


def identity_of(trainer: Trainer) -> dict:
    return run_identity(trainer.settings, trainer.data.fingerprint)


def as_bytes(state: dict) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
    except RuntimeError as error:  # "unexpected pos": the buffer could not grow
        raise MemoryError("for a checkpoint") from error
    return sealed(buffer.getvalue())


def snapshot(trainer: Trainer) -> Callable[[], tuple[bytes, dict[str, bytes]]]:
    """checkpoint.pt of now and, if the last epoch is the best, its files: see best_files.

    The state is copied at once. What is returned waits for the device and makes the bytes: for
    another thread, while the trainer goes on.
    """
    state = {"format": FORMAT, "identity": identity_of(trainer), **trainer.state_dict()}
    wait = copied(trainer.data.train.labels.device)

    def files() -> tuple[bytes, dict[str, bytes]]:
        wait()
        return as_bytes(state), best_files(state) if state["best"] is state["rows"][-1] else {}

    return files


def best_files(state: dict) -> dict[str, bytes]:
    """The files that tell of the best epoch: its weights, and the classes that it predicted."""
    best = {"identity": state["identity"], "network": state["best_weights"], **state["best"]}
    files = {"best.pt": as_bytes(best)}
    if state.get("best_predictions"):  # older checkpoints have none
        predictions = io.BytesIO()
        np.savez_compressed(predictions, **state["best_predictions"])
        files["predictions.npz"] = predictions.getvalue()
    return files


def resume(folder: RunFolder, new_trainer: Callable[[], Trainer]) -> Trainer:
    """A trainer at the last usable checkpoint of the run, or a new one.

    Trouble of the machine, such as no memory, is raised: it is no verdict on a file. A run that was
    finished never starts again in silence: Lost. Nothing is written over a whole checkpoint of
    another run, other data or a newer version: UserError.
    """
    trainer = new_trainer()
    wanted = identity_of(trainer)
    for path, content in folder.checkpoints(most_bytes(trainer.network)):
        try:
            with as_value_errors():
                state = read_state(content)
                if state.get("format", FORMAT) != FORMAT:
                    raise ValueError("another version of this program wrote it")
                if without_defaults(state["identity"]) != wanted:
                    raise ValueError("it is of another run, or of other data")
                refuse_misfit(state, trainer)
        except ValueError as error:
            raise UserError(f"{path} is whole, but nothing that this run can go on from ({error}); "
                            "update the program or name the right data, or delete "
                            f"{folder.folder} to retrain it") from error
        trainer.load_state_dict(state)
        if path.name != "checkpoint.pt":
            folder.step_back()  # or the next one would push it out
        return trainer
    if result := folder.result():
        raise Lost(f"it was finished with {result['epochs']} epochs, but has no usable checkpoint "
                   "to go on from; delete its folder to retrain it")
    return trainer


def refuse_misfit(state: dict, trainer: Trainer) -> None:
    """Raise an error unless the state is one of this very network, of so many epochs."""
    network, data, rows = trainer.network, trainer.data, state["rows"]
    own = network.state_dict()
    if not all(tuple(row) == COLUMNS and all(map(is_number, row.values())) for row in rows):
        raise ValueError("its metrics are no numbers")
    if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)) or state["best"] not in rows:
        raise ValueError("its metrics are not what was saved")
    refuse_unlike(state["network"], own)
    refuse_unlike(state["best_weights"], own)
    if predicted := state.get("best_predictions"):  # older ones have none
        small = predicted["val"].dtype
        refuse_unlike(predicted, {name: getattr(data, name).labels.to("cpu", small)
                                  for name in ("val", "test")})
    moments = state["optimizer"]["state"]
    refuse_unlike(moments, {
        i: {"step": torch.zeros(()), "exp_avg": weight.detach(), "exp_avg_sq": weight.detach()}
        for i, weight in enumerate(network.parameters())})
    for i, weight in enumerate(network.parameters()):  # Adam's kernel goes by the weight's strides
        for name in ("exp_avg", "exp_avg_sq"):
            moments[i][name] = torch.empty_like(weight.detach()).copy_(moments[i][name])
