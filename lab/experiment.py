"""From settings to finished runs: shares the list out among processes and trains what is left."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from fast.machine import choose_device, keep_freed_memory  # before torch: says how threads wait

# isort: split
import torch

from fast.gpu.graph import wants_graph
from fast.gpu.guard import cache_in
from lab.active_run import ActiveRun, train
from lab.errors import in_one_line
from lab.progress import Pace, print_results
from lab.tracking import chosen_tools
from load_data import Data
from store.code import code_version
from store.files import UserError, one_line
from store.images import prepared
from store.run import RunFolder, forget_failures
from store.settings import Settings
from store.trained import Build, is_out_of_memory

SIDE_BY_SIDE = 8  # small MLPs at once: enough to gain from it, few enough for several workers
Load = Callable[[Path, bool], Data]


@in_one_line
def run_experiment(options, build: Build, load: Load) -> int:
    """Train what the command line says; returns the exit code."""
    chosen_tools(options)  # fail early if a package is missing
    device = choose_device(options.device)
    cache_in(options.runs_dir)
    code_version(device.type == "cuda")  # of the sources as they were loaded just now
    keep_freed_memory()
    return train_all(options, build, load(options.data_dir, options.synthetic), device)


def train_all(options, build: Build, data: Data, device: torch.device) -> int:
    """Train every run of the list that is not finished and that no other process trains.

    Waits for the others in the end, unless --no_wait, and takes over what they leave if they die.
    """
    folders = {settings: RunFolder(options.runs_dir / options.network / settings.name)
               for settings in options.settings}
    for settings, folder in folders.items():
        refuse_impossible(settings, folder, data)
    if options.retry:
        forget_failures(folders.values())
    data = on_device(data, options.settings[0], device)
    waiting_for = None
    pace = Pace(folders.values(), options.num_epochs) if len(folders) > 1 else None
    while left := [settings for settings, folder in folders.items() if is_open(settings, folder)]:
        size = SIDE_BY_SIDE if gain_side_by_side(options, device) else 1
        trained = [train_group(group, folders, options, build, data, device, pace)
                   for group in groups(left, size)]
        if any(trained):
            continue
        if options.no_wait:
            break
        folder = folders[left[0]]
        if waiting_for != folder.name:
            worker = folder.read().worker or "its lock"
            print(f"{folder.name}: waiting for {worker}", flush=True)
            waiting_for = folder.name
        time.sleep(0.5)
    failed = print_results(folders)
    if len(folders) > 1:
        print(one_line(f"runs are in {options.runs_dir / options.network}"))
    return int(failed > 0)


def is_open(settings: Settings, folder: RunFolder) -> bool:
    done = folder.finished(settings.num_epochs) and not folder.lost_views
    return not done and folder.failure() is None


def train_group(group: list[Settings], folders: dict[Settings, RunFolder], options, build: Build,
                data: Data, device: torch.device, pace: Pace | None = None) -> bool:
    """Train those of a group whose lock can be had, side by side; returns whether any could."""
    places = {settings: place for place, settings in enumerate(folders, 1)}
    with contextlib.ExitStack() as stack:
        runs = []
        for settings in group:
            folder, ends = folders[settings], stack.enter_context(contextlib.ExitStack())
            if ends.enter_context(folder.hold()) and is_open(settings, folder):
                place = f"{places[settings]}/{len(folders)} " if len(folders) > 1 else ""
                runs.append(ActiveRun(folder, settings, data, device, ends, place, pace))
                runs[-1].begin(build, chosen_tools(options), options.data_dir)
            else:
                ends.close()
        train(runs)
        return bool(runs)


def gain_side_by_side(options, device: torch.device) -> bool:
    """Whether runs are trained side by side: small MLPs whose first layers have the same input.

    A CUDA graph starts all kernels of a step at once, which leaves nothing to share.
    """
    settings = options.settings[0]  # all have these in common
    small = settings.network == "mlp" and 1 < settings.hidden_size <= 1000
    plain = not settings.augment and not settings.compile and settings.hidden_layers == 1
    alone = options.wandb  # takes one run of a process at a time
    able = device.type in ("cpu", "cuda") and not wants_graph(device)
    return small and plain and able and not alone


def groups(runs: list[Settings], size: int) -> list[list[Settings]]:
    """Groups of up to `size` runs that see the same batches."""
    alike: dict = {}
    for settings in runs:
        alike.setdefault((settings.batch_size, settings.seed), []).append(settings)
    return [same[start:start + size] for same in alike.values()
            for start in range(0, len(same), size)]


def refuse_impossible(settings: Settings, folder: RunFolder, data: Data) -> None:
    """Raise UserError for a run that cannot be trained on this data, or could not go on."""
    whole = len(data.train.labels)
    most = {"train_images": whole, "batch_size": min(whole, settings.train_images or whole)}
    for flag, images in most.items():
        if (value := getattr(settings, flag)) and value > images:
            raise UserError(f"argument --{flag}: {value} is not allowed, the training set has "
                            f"{images} images")
    if link := folder.link():
        raise UserError(f"{link} is a link, and nothing here follows links in a run's folder; put "
                        "the file in its place, or delete the folder to retrain the run")
    run = folder.read()
    config, result = run.config, run.result
    if run.is_copy:
        raise UserError(f"{folder.folder} is a copy of the run {run.own_name}, as its config.json "
                        "says; give it that name again, or delete it")
    if config and config["data"].get("fingerprint") != data.fingerprint:
        raise UserError(f"{folder.folder} was trained on other data "
                        f"({config['data'].get('source')}); choose another --runs_dir, or delete "
                        "the folder to retrain it")
    if result and result["epochs"] < settings.num_epochs and not folder.has_checkpoint():
        raise UserError(f"{folder.folder} is finished with {result['epochs']} epochs, but its "
                        "checkpoint is gone, so it cannot go on; delete the folder to retrain it")


def on_device(data: Data, settings: Settings, device: torch.device) -> Data:
    """The data as these runs see it; UserError if the device has no room for it."""
    try:
        return prepared(data, settings, device)
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"{device.type} has no memory for the data set; free some, or choose "
                            "another --device") from error
        raise
