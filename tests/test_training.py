"""The training loop: what a run is made of, that it can be taken up anywhere, and what must not change its numbers."""

import argparse
import copy
import io
import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from in_process import main, only_run, options_of, random_data, settings_of, trainer_of, untimed
from test_settings import VALUES
from test_terminal import in_terminal
from torch import nn

import mlp.model
import training
from fast import linear
from fast.adam import Adam, adam, step_together, takes_fused
from lab.experiment import gain_side_by_side, groups
from lab.side_by_side import Linears, SideBySide, say_one_by_one
from load_data import load_cifar_4d, normalize
from store import images as store_images
from store.images import EVALUATION_BATCH, FLAT_EVALUATION_BATCH, augmented, bootstrap_sample
from store.run import COLUMNS, RunFolder
from store.settings import Settings
from training import Diverged, Trainer, schedule, seed_epoch

SETTINGS = {
    "mlp": settings_of("mlp", num_epochs=3),
    "mlp-augment-onecycle": settings_of("mlp", num_epochs=3, augment=True, schedule="onecycle"),
    "mlp-plain": settings_of("mlp", num_epochs=3, without_BatchNorm=True, without_dropout=True),
    "cnn-2d": settings_of("cnn", num_epochs=3),
    "cnn-1d": settings_of("cnn", num_epochs=3, dropout_type="1d"),
}


def saved(trainer) -> dict:
    """The trainer's state as a checkpoint has it."""
    buffer = io.BytesIO()
    torch.save(trainer.state_dict(), buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


def assert_same_state(one: dict, other: dict) -> None:
    assert untimed(one["rows"]) == untimed(other["rows"])
    for part in ("network", "best_weights", "best_predictions"):
        assert one[part].keys() == other[part].keys()
        for key in one[part]:
            assert torch.equal(one[part][key], other[part][key]), key
    for index, moments in one["optimizer"]["state"].items():
        for key in moments:
            assert torch.equal(moments[key], other["optimizer"]["state"][index][key]), key


# Taken up anywhere


@pytest.mark.parametrize("kind", SETTINGS)
def test_taken_up_after_any_epoch_it_ends_bit_for_bit_the_same(kind):
    settings = SETTINGS[kind]
    whole, states = trainer_of(settings), []
    while whole.epoch < settings.num_epochs:
        whole.run_epoch()
        states.append(saved(whole))
    for state in states[:-1]:
        resumed = trainer_of(settings)
        resumed.load_state_dict(state)
        torch.rand(100)  # whatever the process drew before
        while resumed.epoch < settings.num_epochs:
            resumed.run_epoch()
        assert_same_state(saved(resumed), states[-1])


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_a_finished_run_that_goes_on_equals_one_started_with_more_epochs(network, images, tmp_path):
    common = ("--data_dir", images, "--batch_size", 40)
    for epochs in (1, 3):
        assert main(network, *common, "--runs_dir", tmp_path / "twice", "--num_epochs", epochs) == 0
    assert main(network, *common, "--runs_dir", tmp_path / "once", "--num_epochs", 3) == 0
    twice, once = (only_run(tmp_path / name, network) for name in ("twice", "once"))
    assert untimed(twice.metrics()) == untimed(once.metrics())
    assert twice.result()["epochs"] == 3
    assert_same_state(*(torch.load(run.folder / "checkpoint.pt", weights_only=True) for run in (twice, once)))
    assert twice.config() == once.config()


def test_random_numbers_follow_from_seed_and_epoch():
    def drawn(seed: int, epoch: int) -> tuple:
        order = torch.randperm(50, generator=seed_epoch(seed, epoch))
        return *order.tolist(), *torch.rand(5).tolist()

    first = drawn(3, 5)
    different = [first, drawn(3, 6), drawn(4, 5), drawn(5, 3)]
    assert len(set(different)) == len(different)
    torch.rand(17)
    assert drawn(3, 5) == first
    generator = seed_epoch(3, 5)
    torch.rand(17)  # masks and augmentation leave the order of the samples alone
    assert torch.randperm(50, generator=generator).tolist() == list(first[:50])


def test_seeds_differ_and_one_seed_repeats():
    def trained(seed: int) -> dict:
        trainer = trainer_of(settings_of("mlp", seed=seed))
        trainer.run_epoch()
        return saved(trainer)

    assert_same_state(trained(1), trained(1))
    assert not torch.equal(trained(1)["network"]["linear1.weight"], trained(2)["network"]["linear1.weight"])


# What an epoch sees


def test_the_incomplete_last_batch_is_left_out(monkeypatch):
    trainer = trainer_of(settings_of("mlp", batch_size=32), random_data("mlp", train=70))
    seen, step = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda trainer, index: seen.append(index) or step(trainer, index))
    steps = []
    row = trainer.run_epoch(lambda: steps.append(1))
    assert [len(x) for x in seen] == [32, 32]
    assert len(torch.cat(seen).unique()) == 64
    assert 0 <= row["train_acc"] <= 1
    assert len(steps) == 2
    order = torch.cat(seen)
    trainer.run_epoch()
    assert not torch.equal(torch.cat(seen[2:]), order), "the second epoch has the first one's order"


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_the_row_tells_losses_and_accuracies_of_every_sample(network):
    count = {"mlp": FLAT_EVALUATION_BATCH, "cnn": EVALUATION_BATCH}[network] + 7
    data = random_data(network, train=70, test=count)
    trainer = trainer_of(settings_of(network), data)
    row = trainer.run_epoch()
    assert set(row) == set(COLUMNS)
    assert row["train_acc"] * 64 == pytest.approx(round(row["train_acc"] * 64), abs=1e-3)
    trainer.network.eval()
    for name in ("val", "test"):
        images, labels = getattr(data, name)
        with torch.no_grad():
            logits = trainer.network(normalize(images))
        assert row[f"{name}_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
        assert row[f"{name}_acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)
        assert torch.equal(trainer.best_predictions[name], logits.argmax(1).to(torch.uint8))


def test_a_bootstrap_sample_is_drawn_with_replacement_and_is_the_same_in_every_epoch():
    def seen(seed: int, epochs: int = 2, **options) -> list[list[int]]:
        trainer, orders = trainer_of(settings_of("mlp", seed=seed, batch_size=35, **options)), []
        for _ in range(epochs):
            orders.append(trainer.begin_epoch().tolist())
            trainer.rows.append({})  # an epoch later
        return orders

    (first, second), (other, _) = seen(1, bootstrap=True), seen(2, bootstrap=True)
    assert first != second and sorted(first) == sorted(second)  # another order of the same images
    assert len(first) == 70 and 30 < len(set(first)) < 60  # 1 - 1/e of 70 is 44
    assert sorted(other) != sorted(first)
    assert sorted(seen(1)[0]) == list(range(70))
    share = len(bootstrap_sample(0, 40_000).unique()) / 40_000
    assert share == pytest.approx(1 - math.exp(-1), abs=0.01)
    assert bootstrap_sample(0, 40_000).max() < 40_000


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_cross_entropy_is_pytorchs_with_its_derivative(reduction):
    logits, labels = torch.cat([torch.randn(64, 10), 100 * torch.randn(64, 10)]), torch.randint(10, (128,))
    found, expected = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = training.cross_entropy(found, labels, reduction)
    reference = nn.functional.cross_entropy(expected, labels, reduction=reduction)
    torch.testing.assert_close(loss, reference)
    weights = torch.rand(loss.shape)
    (loss * weights).sum().backward()
    (reference * weights).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad)


def test_the_best_epoch_is_the_first_of_highest_validation_accuracy(monkeypatch):
    trainer = trainer_of(settings_of("mlp", num_epochs=5))
    right = iter([2, 9, 5, 9, 1])
    weights, predictions = [], []

    def evaluate(network, split, precision):
        count = next(right) if split is trainer.data.val else 0
        predictions.append((split.labels + (torch.arange(len(split.labels)) >= count).long()) % 10)
        return torch.ones(len(split.labels)), nn.functional.one_hot(predictions[-1], 10).float()

    monkeypatch.setattr(training, "evaluate", evaluate)
    for _ in range(5):
        trainer.run_epoch()
        weights.append(trainer.network.state_dict()["linear1.weight"].clone())
    assert trainer.best["epoch"] == 2
    assert torch.equal(trainer.best_weights["linear1.weight"], weights[1])
    assert [trainer.best_predictions[name].tolist() for name in ("val", "test")] == [
        predicted.tolist() for predicted in predictions[2:4]]


def test_the_test_set_steers_nothing():
    def trained(seed: int):
        data = random_data("mlp")
        trainer = trainer_of(settings_of("mlp", num_epochs=4),
                             data._replace(test=random_data("mlp", test=20 + seed, seed=seed).test))
        for _ in range(4):
            trainer.run_epoch()
        return trainer

    one, other = trained(1), trained(2)
    assert [row["test_loss"] for row in one.rows] != [row["test_loss"] for row in other.rows]
    assert one.best["epoch"] == other.best["epoch"]
    for key, value in one.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[key])
        assert torch.equal(one.best_weights[key], other.best_weights[key])


# Side by side

AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
TEAM = [settings_of("mlp", num_epochs=3, drop_rate=0.5), settings_of("mlp", num_epochs=3, learning_rate=0.01),
        settings_of("mlp", num_epochs=3, schedule="cosine"),
        settings_of("mlp", num_epochs=3, without_BatchNorm=True, without_dropout=True)]


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_side_by_side_each_network_ends_as_alone(precision, onednn, monkeypatch):
    monkeypatch.setattr(linear, "FASTER", onednn and AVX512)
    settings = [replace(one, precision=precision) for one in TEAM]
    alone, together = ([trainer_of(one) for one in settings] for _ in range(2))
    team = SideBySide(together)
    for _ in range(3):
        team.run_epoch()
    for one, other in zip(alone, together, strict=True):
        for _ in range(3):
            one.run_epoch()
        if precision == "fp32":
            assert_same_state(saved(one), saved(other))
        for row, expected in zip(other.rows, one.rows, strict=True):  # how bf16 products round depends on the hardware
            assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=0.01)
    hidden = team.linear1(torch.zeros(2, 3072))[0]
    assert hidden.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


@pytest.mark.skipif(not AVX512, reason="only with AVX-512 they are one product")
@pytest.mark.parametrize("batch_size, count", [(250, 8), (512, 5), (1024, 2)])
def test_linear_layers_computed_as_one_are_those_computed_alone(batch_size, count, monkeypatch):
    monkeypatch.setattr(linear, "FASTER", True)
    x, layers = torch.randn(batch_size, 3072), [nn.Linear(3072, 100) for _ in range(count)]
    gradients = [torch.randn(batch_size, 100) for _ in layers]

    def gradients_of(outputs) -> list:
        torch.autograd.backward(outputs, gradients)
        found = [parameter.grad for layer in layers for parameter in (layer.weight, layer.bias)]
        for layer in layers:
            layer.zero_grad()
        return found

    alone = [linear.linear(x, layer.weight, layer.bias) for layer in layers]
    together = Linears.apply(x, *(layer.weight for layer in layers), *(layer.bias for layer in layers))
    for one, other in zip([*alone, *gradients_of(alone)], [*together, *gradients_of(together)], strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous() == other.is_contiguous()


@pytest.mark.parametrize("field", [*VALUES, "hidden_size"])
def test_side_by_side_every_setting_acts_as_alone(field):
    """A setting that acts in a step must act in both (CONTRIBUTING.md, 'Add a setting')."""
    settings = settings_of("mlp", **{field: {**VALUES, "hidden_size": 20}[field]})
    if not gain_side_by_side(argparse.Namespace(settings=[settings], wandb=False), torch.device("cpu")):
        pytest.skip(f"runs with {field} are trained one by one")
    alone, *together = (trainer_of(settings) for _ in range(3))
    for row in SideBySide(together).run_epoch():
        assert untimed([row])[0] == pytest.approx(untimed([alone.rows[0] if alone.rows else alone.run_epoch()])[0],
                                                  rel=0.01)


@pytest.mark.parametrize("wrong", [0, 2])
def test_side_by_side_what_goes_wrong_with_one_changes_nothing_for_the_others(wrong, monkeypatch):
    trainers, broken = [trainer_of(TEAM[i % 2]) for i in range(4)], trainer_of(TEAM[0])
    with torch.no_grad():
        trainers[wrong].network.linear2.bias[0] = float("nan")
    monkeypatch.setattr(broken.network, "after_linear1", lambda x: 1 / 0)
    outcomes = SideBySide([*trainers, broken]).run_epoch()
    assert isinstance(outcomes[wrong], Diverged)
    assert isinstance(outcomes[-1], ZeroDivisionError)
    for i in set(range(4)) - {wrong}:
        alone = trainer_of(TEAM[i % 2])
        alone.run_epoch()
        assert_same_state(saved(alone), saved(trainers[i]))


def test_side_by_side_what_goes_wrong_with_each_is_told_by_each(monkeypatch):
    monkeypatch.setattr(Trainer, "begin_epoch", lambda trainer: 1 / 0)
    outcomes = SideBySide([trainer_of(settings) for settings in TEAM]).run_epoch()
    assert [type(outcome) for outcome in outcomes] == [ZeroDivisionError] * len(TEAM)


@pytest.mark.parametrize("what", ["forward", "product"])
def test_side_by_side_an_edit_of_the_network_trains(what, monkeypatch, capsys):
    """Of a line that they do not run there: they then compute whole networks."""
    forward = mlp.model.MLP.forward
    if what == "forward":
        monkeypatch.setattr(mlp.model.MLP, "forward", lambda network, x: 2 * forward(network, x))
    else:
        monkeypatch.setattr(mlp.model, "product", lambda x, layer: -layer(x))
    trainers, alone = ([trainer_of(settings) for settings in TEAM] for _ in range(2))
    say_one_by_one.cache_clear()
    for one, row in zip(alone, SideBySide(trainers).run_epoch(), strict=True):
        assert untimed([row]) == untimed([one.run_epoch()])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "one by one" in said


def test_a_batch_is_prepared_once_for_all_that_train_side_by_side(monkeypatch):
    prepared = []
    monkeypatch.setattr(store_images, "normalize", lambda pixels: prepared.append(len(pixels)) or normalize(pixels))
    SideBySide([trainer_of(settings) for settings in TEAM]).run_epoch()
    assert prepared == [32, 32, 30, 30]


@pytest.mark.parametrize(("error", "reason"), [
    (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    (RuntimeError("a line\nand another"), "RuntimeError: a line and another")])
def test_what_goes_wrong_with_all_at_once_is_noted_by_each_in_one_line(error, reason, image_folder, tmp_path,
                                                                       monkeypatch):
    def fail(team, x):
        raise error

    monkeypatch.setattr(SideBySide, "linear1", fail)
    assert main("mlp", "--data_dir", image_folder, "--runs_dir", tmp_path, "--drop_rate", 0.1, 0.3) == 1
    reasons = [RunFolder(folder).failure()["reason"] for folder in (tmp_path / "mlp").iterdir()]
    assert reasons == [reason] * 2


def test_teams_share_batch_size_and_seed_and_hold_every_run_once():
    runs = [settings_of("mlp", batch_size=size, drop_rate=rate, seed=seed)
            for size in (32, 64) for rate in (0.0, 0.2, 0.4) for seed in (0, 1)]
    found = groups(runs, 2)
    assert sorted(map(len, found)) == [1] * 4 + [2] * 4
    assert all(len({(settings.batch_size, settings.seed) for settings in team}) == 1 for team in found)
    assert {settings for team in found for settings in team} == set(runs)


@pytest.mark.parametrize("flags, company", [
    ((), True), (("--hidden_size", "5000"), False), (("--wandb",), False), (("--device", "mps"), False),
    (("--device", "cuda"), True), (("--augment",), False), (("--precision", "bf16"), True), (("--compile",), False)])
def test_only_small_mlps_train_side_by_side(flags, company):
    options = options_of("mlp", *flags)
    assert gain_side_by_side(options, torch.device(options.device.replace("auto", "cpu"))) == company
    options = options_of("cnn")
    assert not gain_side_by_side(options, torch.device("cpu"))


def test_runs_whose_step_is_a_cuda_graph_train_one_by_one(monkeypatch):
    monkeypatch.setenv("CUDA_GRAPH", "1")
    alone, together = map(torch.device, ("cuda", "cpu"))
    assert not gain_side_by_side(options_of("mlp"), alone) and gain_side_by_side(options_of("mlp"), together)


def test_runs_of_one_command_go_on_together_from_different_epochs(image_folder, tmp_path):
    """As a crash may leave them: the files are those of separate commands."""
    rates, common = (0.0, 0.3, 0.6), ("--data_dir", image_folder, "--batch_size", 80, "--seed", 1)
    together, apart = ((*common, "--runs_dir", tmp_path / name) for name in ("together", "apart"))
    main("mlp", *together, "--drop_rate", rates[1], "--num_epochs", 2)
    main("mlp", *together, "--drop_rate", rates[2], "--num_epochs", 1)
    assert main("mlp", *together, "--drop_rate", *rates, "--num_epochs", 3) == 0
    for rate in rates:
        main("mlp", *apart, "--drop_rate", rate, "--num_epochs", 3)
    runs = [[RunFolder(folder) for folder in sorted((tmp_path / name / "mlp").iterdir())]
            for name in ("together", "apart")]
    for one, other in zip(*runs, strict=True):
        assert one.finished(3)
        assert untimed(one.metrics()) == untimed(other.metrics())
        weights = [torch.load(run.folder / "best.pt", weights_only=True)["network"] for run in (one, other)]
        for key in weights[0]:
            assert torch.equal(weights[0][key], weights[1][key]), key


# The optimizer


def test_adam_is_that_of_torch_and_takes_over_its_state():
    networks = [nn.Linear(5, 3) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    ours, theirs = (kind(network.parameters(), 0.01, fused=True)
                    for kind, network in zip((Adam, torch.optim.Adam), networks, strict=True))
    for i in range(4):
        for network, optimizer in zip(networks, (ours, theirs), strict=True):
            network(torch.ones(2, 5) * i).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        for own, other in zip(*(network.parameters() for network in networks), strict=True):
            assert own.grad is None
            assert own.requires_grad
            assert torch.equal(own, other)
        states = [copy.deepcopy(optimizer.state_dict()) for optimizer in (ours, theirs)]
        ours.load_state_dict(states[1])
        theirs.load_state_dict(states[0])


@pytest.mark.parametrize("refuses", [True, False])
def test_adam_is_fused_unless_mps_refuses_which_a_line_says(refuses, monkeypatch, capsys):
    """The device "mps" is a CPU here, whose fused step may raise an error."""
    def fused(*arguments, **keywords):
        if refuses:
            raise RuntimeError("fused Adam\nneeds macOS 15")

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, **other: zeros(*shape))
    monkeypatch.setattr(torch, "_fused_adam_", fused)
    takes_fused.cache_clear()
    for _ in range(2):
        optimizer = adam(nn.Linear(2, 2), settings_of("mlp"), torch.device("mps"))
    takes_fused.cache_clear()
    assert optimizer.defaults["fused"] is not refuses
    said = capsys.readouterr().err
    assert said.count("\n") == refuses and ("macOS" in said) == refuses
    assert takes_fused(torch.device("cpu"))


@pytest.mark.parametrize("rates", [[0.01, 0.01], [0.01, 0.02]])
def test_optimizers_that_step_together_step_as_alone(rates):
    """From their first step, and from moments that each has; one of them without a gradient."""
    def take(together: bool) -> list:
        torch.manual_seed(0)
        networks = [nn.Linear(5, 3) for _ in range(3)]
        optimizers = [adam(network, settings_of("mlp", learning_rate=0.01), torch.device("cpu"))
                      for network in networks]
        for rate in rates:
            for i, (network, optimizer) in enumerate(zip(networks, optimizers, strict=True)):
                optimizer.param_groups[0]["lr"] = rate
                network(torch.rand(2, 5)).square().sum().backward()
                if i == 1:
                    network.bias.grad = None
            if together:
                step_together(optimizers)
            else:
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        assert all(weight.grad is None for network in networks for weight in network.parameters())
        return [value for optimizer in optimizers for state in optimizer.state.values()
                for value in state.values()] + [w for n in networks for w in n.parameters()]

    alone, together = take(False), take(True)
    assert len(alone) == len(together) and all(map(torch.equal, alone, together))


@pytest.mark.parametrize("kind, writes", [("constant", 0), ("cosine", 3)])
def test_the_rate_is_written_where_it_changes_alone(kind, writes, monkeypatch):
    """On a GPU it is a tensor, and writing it starts a kernel."""
    trainer, written = trainer_of(settings_of("mlp", schedule=kind, num_epochs=2)), []
    rate = torch.tensor(0.001)
    trainer.optimizer.param_groups[0]["lr"] = rate
    monkeypatch.setattr(torch.Tensor, "fill_", lambda own, value: written.append(value) or own)
    for step in (0, 1, 1, 2, 3):
        trainer.set_learning_rate(step)
    assert len(written) == writes and trainer.optimizer.param_groups[0]["lr"] is rate


def run_main_without_dynamo(network: str, *arguments) -> subprocess.CompletedProcess:
    """Importing it takes longer than all else before the first step."""
    script = ("import runpy, sys, torch; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0][:4])\n"
              "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
              "finally: print('imported' if 'torch._dynamo' in sys.modules else 'not needed')")
    done = subprocess.run([sys.executable, "-c", script, f"{network}/main.py", *map(str, arguments)],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("not needed\n"), done.stderr
    done.stdout = done.stdout.removesuffix("not needed\n")
    return done


def test_a_run_does_without_torch_dynamo(images, tmp_path):
    done = run_main_without_dynamo("cnn", "--data_dir", images, "--runs_dir", tmp_path, "--batch_size", 40,
                                   "--num_epochs", 1)
    assert "epoch 1/1" in done.stdout, done.stderr


# Augmentation, schedules, precision


def windows(pixels):
    """Every 32 x 32 window of the padded pictures, as they are and flipped: N x 2 x 81 x 3072."""
    padded = nn.functional.pad(pixels, (4, 4, 4, 4))
    cut = torch.stack([padded[:, :, top:top + 32, left:left + 32] for top in range(9) for left in range(9)], dim=1)
    return torch.stack([cut, cut.flip(-1)], dim=1).flatten(3)


def test_augmented_pictures_are_windows_of_the_padded_ones_and_half_of_them_flipped():
    pixels = torch.rand(400, 3, 32, 32) + 0.5
    torch.manual_seed(0)
    moved = augmented(pixels)
    flips, places = [], set()
    for picture, kept in zip(moved.flatten(1).split(50), pixels.split(50), strict=True):
        same = (windows(kept) == picture[:, None, None]).all(-1)
        assert (same.flatten(1).sum(1) == 1).all(), "no window of the picture itself"
        found = same.nonzero()
        flips += found[:, 1].tolist()
        places |= set(found[:, 2].tolist())
    assert 160 < sum(flips) < 240  # 200, four standard deviations either way
    assert len(places) == 81  # each one is missed with a probability of 0.7 %, so about half of all seeds are complete


def test_flat_images_are_augmented_as_pictures():
    pixels = torch.rand(20, 3, 32, 32)
    torch.manual_seed(0)
    pictures = augmented(pixels)
    torch.manual_seed(0)
    assert torch.equal(augmented(pixels.flatten(1)), pictures.flatten(1))


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_augmentation_is_off_by_default_and_changes_training_alone(network, monkeypatch):
    calls = []
    monkeypatch.setattr(training, "augmented", lambda pixels: calls.append(len(pixels)) or pixels)
    trainer_of(settings_of(network)).run_epoch()
    assert not calls
    trainer_of(settings_of(network, augment=True)).run_epoch()
    assert calls == [32, 32]


def test_schedules_at_their_beginning_middle_and_end():
    assert [schedule("constant", p) for p in (0, 0.5, 1)] == [1, 1, 1]
    assert [schedule("cosine", p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [schedule("onecycle", p) for p in (0, 0.15, 0.3, 0.65, 1)] == pytest.approx(
        [0.04, 0.52, 1, 0.5, 0])
    rates = [schedule("onecycle", p / 100) for p in range(101)]
    assert rates[:31] == sorted(rates[:31])
    assert rates[30:] == sorted(rates[30:], reverse=True)


def test_the_optimizer_follows_the_schedule():
    trainer = trainer_of(settings_of("mlp", schedule="cosine", num_epochs=2, batch_size=35, learning_rate=0.01))
    rates = []
    for _ in range(2):
        trainer.run_epoch(lambda: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    assert rates == pytest.approx([0.01 * schedule("cosine", p) for p in (0, 0.25, 0.5, 0.75)])


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32(network):
    settings = settings_of(network, precision="bf16")
    assert settings.name.endswith("_bf16")
    trainer, kinds = trainer_of(settings), set()
    trainer.network.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    trainer.run_epoch()
    assert kinds == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.network.parameters()} == {torch.float32}


def test_compile_compiles_the_network_and_keeps_the_numbers(monkeypatch):
    compile_network = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_network(module, backend="eager"))
    settings = settings_of("mlp", compile=True, drop_rate=0.0)
    assert settings.name.endswith("_compile")
    compiled, plain = trainer_of(settings), trainer_of(settings_of("mlp", drop_rate=0.0))
    assert compiled.network._compiled_call_impl is not None
    assert compiled.run_epoch()["val_loss"] == pytest.approx(plain.run_epoch()["val_loss"], abs=1e-4)


# Files and failures


def test_several_values_are_every_combination():
    options = options_of("mlp", "--batch_size", 16, 32, "--learning_rate", 0.01, 0.001, "--drop_rate", 0, 0.5,
                         "--seed", 0, 1)
    assert len(options.settings) == 16 and set(options.settings) == {
        settings_of("mlp", batch_size=b, learning_rate=r, drop_rate=d, seed=s)
        for b in (16, 32) for r in (0.01, 0.001) for d in (0.0, 0.5) for s in (0, 1)}


def test_the_files_of_a_run(images, tmp_path):
    assert main("cnn", "--data_dir", images, "--runs_dir", tmp_path, "--num_epochs", 2, "--batch_size", 40) == 0
    run = RunFolder(tmp_path / "cnn" / "40_0.001_0.2_False_False_2d_seed0")
    lines = (run.folder / "metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,train_loss,train_acc,val_loss,val_acc,test_loss,test_acc,seconds"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2"]
    config = run.config()
    assert set(Settings.__dataclass_fields__) < set(config)
    assert config["data"]["images"] == {"train": 80, "val": 20, "test": 20}
    assert config["data"]["source"] == "image folder"
    assert len(config["data"]["classes"]) == 10
    assert config["threads"] == torch.get_num_threads()
    assert config["versions"]["torch"] == torch.__version__
    assert config["processor"].endswith(torch.backends.cpu.get_cpu_capability())
    assert config["device"] == "cpu"
    result, best = run.result(), torch.load(run.folder / "best.pt", weights_only=True)
    assert result["epochs"] == 2
    assert best["epoch"] == result["best_epoch"]
    row = run.metrics()[result["best_epoch"] - 1]
    assert all(result[key] == row[key] == best[key] for key in ("val_loss", "val_acc", "test_loss", "test_acc"))
    predicted, data = np.load(run.folder / "predictions.npz"), load_cifar_4d(images)
    for name in ("val", "test"):
        share = (predicted[name] == getattr(data, name).labels.numpy()).mean()
        assert predicted[name].dtype == np.uint8 and result[f"{name}_acc"] == round(share, 6)


def test_a_run_that_diverges_is_recorded_and_the_others_go_on(image_folder, tmp_path, capsys):
    assert main("mlp", "--data_dir", image_folder, "--runs_dir", tmp_path, "--without_BatchNorm", "--num_epochs", 3,
                "--learning_rate", 1e30, 0.001) == 1
    failed, fine = (RunFolder(tmp_path / "mlp" / f"32_{rate}_0.2_True_False_seed0") for rate in ("1e+30", "0.001"))
    assert failed.failure()["epoch"] == 1
    assert 1 <= failed.failure()["step"] <= 7
    assert failed.result() is None
    assert fine.finished(3)
    assert "the loss is not finite in epoch 1" in capsys.readouterr().out


# What is shown

def test_piped_it_prints_one_line_per_epoch_and_nothing_for_a_terminal(image_folder, tmp_path):
    done = run_main_without_dynamo("mlp", "--data_dir", image_folder, "--runs_dir", tmp_path, "--batch_size", 32, 64,
                                   "--num_epochs", 2)
    assert done.returncode == 0
    epochs = [line for line in done.stdout.splitlines() if re.search(r" epoch \d", line)]
    assert [re.match(r"(\d/\d) mlp (\d+)_.* epoch (\d/\d) ", line).groups() for line in epochs] == [
        ("1/2", "32", "1/2"), ("1/2", "32", "2/2"), ("2/2", "64", "1/2"), ("2/2", "64", "2/2")]
    assert "\r" not in done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    table = done.stdout.split("\n\n")[-1].splitlines()
    assert " ".join(table[0].split()) == "run epochs best epoch val loss val acc test loss test acc seconds"
    assert [line.split()[0].split("_")[0] for line in table[1:]] == ["32", "64", "runs"]


def test_on_a_terminal_it_shows_a_bar_with_loss_accuracy_speed_and_time_left(image_folder, tmp_path):
    command = [sys.executable, ROOT / "mlp" / "main.py", "--data_dir", image_folder, "--runs_dir", tmp_path,
               "--batch_size", 32, "--num_epochs", 3]
    code, shown = in_terminal(command, NO_COLOR="1")
    assert code == 0
    last = [line for line in shown.replace("\r", "\n").splitlines() if "3.0/3" in line][-1]
    assert re.match(r"mlp 32_0.001_0.2 \|.*\| 3\.0/3 \[\d\d:\d\d<\d\d:\d\d, val loss \d\.\d{3} acc \d\.\d{3}, "
                    r"\d+\.\d s/epoch\]", last), last
    assert "epoch 1/3" not in shown
    assert "32_0.001_0.2_False_False_seed0" in shown  # in the table
    assert not re.search(r"\x1b\[[0-9;]*m", shown)  # no colour
