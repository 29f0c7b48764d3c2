"""TensorBoard and Weights & Biases, with the real packages: what they get is read back."""

import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, run_main
from in_process import main, only_run, untimed

from lab import tracking
from lab.tracking import CURVES, FINAL
from store.files import UserError
from store.run import RunFolder

EVENTS = "events.out.tfevents.*"


@pytest.fixture
def train(image_folder, tmp_path):
    """Trains an MLP in tmp_path/runs; returns its run."""
    def run(*arguments, runs_dir=tmp_path / "runs") -> RunFolder:
        assert main("mlp", "--data_dir", image_folder, "--runs_dir", runs_dir, *arguments) == 0
        return only_run(runs_dir, "mlp")
    return run


# TensorBoard


def scalars_of(folder) -> dict[str, list[tuple]]:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def hparams_view(runs_dir) -> tuple[set[str], list]:
    """The columns of settings and the rows of the HPARAMS view, as TensorBoard's own plugin makes them."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import (
        api_pb2,
        backend_context,
        get_experiment,
        list_session_groups,
    )

    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(runs_dir)).Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(runs_dir))
    context = backend_context.Context(TBContext(data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(slice_size=100, allowed_statuses=[
        api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING, api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_FAILURE])
    rows = list_session_groups.Handler(RequestContext(), context, "all", request).run().session_groups
    experiment = get_experiment.Handler(RequestContext(), context, "all", api_pb2.GetExperimentRequest()).run()
    return {setting.name for setting in experiment.hparam_infos}, rows


def assert_shown_in_tensorboard(run: RunFolder) -> None:
    rows, result, scalars = run.metrics(), run.result(), scalars_of(run.folder)
    for column, curve in CURVES.items():
        assert scalars[curve] == [(row["epoch"], pytest.approx(row[column])) for row in rows]
    for key in FINAL:
        assert scalars[f"best/{key}"] == [(result["best_epoch"], pytest.approx(result[key]))]
    assert set(scalars) == {*CURVES.values(), *(f"best/{key}" for key in FINAL)}


def test_tensorboard_has_curves_settings_and_final_metrics(train, tmp_path):
    pytest.importorskip("tensorboard")
    run = train("--num_epochs", 3, "--tensorboard", "--drop_rate", 0.4)
    assert_shown_in_tensorboard(run)
    assert [path.name for path in run.folder.iterdir() if path.is_dir()] == []
    _, (row,) = hparams_view(tmp_path / "runs")
    assert row.hparams["drop_rate"].number_value == 0.4
    assert row.hparams["batch_size"].number_value == 32
    assert row.hparams["hidden_size"].number_value == 100
    assert row.hparams["schedule"].string_value == "constant"
    assert not row.hparams["without_BatchNorm"].bool_value
    assert {metric.name.tag: metric.value for metric in row.metric_values} == {
        f"best/{key}": pytest.approx(run.result()[key]) for key in FINAL}
    session, = row.sessions
    assert session.name == f"mlp/{run.name}"


def test_a_run_that_goes_on_has_each_epoch_once_in_tensorboard(train):
    pytest.importorskip("tensorboard")
    for epochs in (1, 3):
        run = train("--num_epochs", epochs, "--tensorboard")
    assert len(run.metrics()) == 3
    assert_shown_in_tensorboard(run)
    assert len(list(run.folder.glob(EVENTS))) == 1


def test_both_networks_share_one_hparams_view(image_folder, tmp_path):
    pytest.importorskip("tensorboard")
    for network in ("mlp", "cnn"):
        assert main(network, "--data_dir", image_folder, "--runs_dir", tmp_path, "--num_epochs", 1, "--tensorboard",
                    "--batch_size", 120) == 0
    columns, rows = hparams_view(tmp_path)
    assert columns == set(tracking.SETTINGS)
    cnn, mlp = sorted(rows, key=lambda row: row.hparams["network"].string_value)
    assert mlp.hparams["hidden_size"].number_value == 100
    assert "hidden_size" not in cnn.hparams
    assert cnn.hparams["dropout_type"].string_value == "2d"


# Weights & Biases


def records_of(run: RunFolder) -> list:
    """Every record of the run's one offline log: after 7 bytes blocks of 32 KiB of (checksum, length, kind, part)."""
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    path, = run.folder.glob("wandb/offline-run-*/*.wandb")
    data, position, parts, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if not kind:  # the rest of the block is empty
            position = (position // 32768 + 1) * 32768
            continue
        parts += data[position + 7:position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or its last part
            records.append(Record.FromString(parts))
            parts = b""
    return records


def assert_shown_in_wandb(run: RunFolder) -> None:
    records = records_of(run)
    for _ in range(100):  # it is written by a process of W&B's own, which may be a moment late
        if any(record.HasField("exit") for record in records):
            break
        time.sleep(0.2)
        records = records_of(run)
    history = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
               for record in records if record.HasField("history")]
    rows = [{"_step": row["epoch"], **{curve: row[column] for column, curve in CURVES.items()}}
            for row in run.metrics()]
    assert [{key: record[key] for key in rows[0]} for record in history] == rows
    summary = {item.key: json.loads(item.value_json) for record in records if record.HasField("summary")
               for item in record.summary.update if item.key}
    for key in (*FINAL, "best_epoch"):
        assert summary[f"best/{key}"] == run.result()[key]


@pytest.fixture
def offline(monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "")


def test_wandb_has_the_same_and_a_run_that_goes_on_has_each_epoch_once(train, offline):
    run = train("--num_epochs", 1, "--wandb")
    assert_shown_in_wandb(run)
    name = tracking.run_id(run.folder / "wandb" / "id")
    run = train("--num_epochs", 3, "--wandb")
    assert_shown_in_wandb(run)
    record = next(record.run for record in records_of(run) if record.HasField("run"))
    assert (record.run_id, record.display_name, record.run_group) == (name, run.name, "mlp")
    settings = {item.key: json.loads(item.value_json) for item in record.config.update}
    assert settings["batch_size"] == 32
    assert settings["num_epochs"] == 3


def test_wandb_is_offline_without_a_key_and_writes_to_the_runs_folder_alone(image_folder, tmp_path):
    pytest.importorskip("wandb")
    environment = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_CONFIG_DIR": str(tmp_path / "config"),
                   "WANDB_CACHE_DIR": str(tmp_path / "cache")}
    place = tmp_path / "elsewhere"
    place.mkdir()
    done = run_main("mlp", "--data_dir", image_folder, "--runs_dir", tmp_path / "runs", "--batch_size", 32,
                    "--num_epochs", 1, "--wandb", env=environment, cwd=place)
    assert done.returncode == 0, done.stderr
    assert_shown_in_wandb(only_run(tmp_path / "runs", "mlp"))
    assert not list(place.iterdir())
    assert "wandb" not in done.stdout + done.stderr


def test_where_wandb_logs(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    assert tracking.wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "a key")
    assert tracking.wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking.wandb_mode() == "disabled"


# Both


def test_tracking_changes_no_number(train, offline, tmp_path):
    pytest.importorskip("tensorboard")
    plain = train("--num_epochs", 2, runs_dir=tmp_path / "plain")
    tracked = train("--num_epochs", 2, "--tensorboard", "--wandb", runs_dir=tmp_path / "tracked")
    assert untimed(plain.metrics()) == untimed(tracked.metrics())
    assert (plain.folder / "best.pt").stat().st_size == (tracked.folder / "best.pt").stat().st_size
    assert plain.config() == tracked.config()


def test_finished_runs_are_exported_afterwards(image_folder, tmp_path, offline, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    assert main("mlp", "--data_dir", image_folder, "--runs_dir", tmp_path, "--num_epochs", 2,
                "--drop_rate", 0, 0.2, 0.4) == 0
    runs = [RunFolder(folder) for folder in sorted((tmp_path / "mlp").iterdir())]
    (runs[0].folder / "result.json").unlink()  # as if it was stopped
    arguments = [str(ROOT / "tracking.py"), str(tmp_path), "--tensorboard", "--wandb"]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 runs exported" in done.stdout
    monkeypatch.setattr(sys, "argv", arguments)
    for _ in range(2):  # exported again, it is the same
        for run in runs[1:]:
            assert_shown_in_tensorboard(run)
            assert_shown_in_wandb(run)
        assert tracking.main() == 0
    assert [step for step, _ in scalars_of(runs[0].folder)["loss/val"]] == [1, 2]
    assert len(hparams_view(tmp_path)[1]) == 3
    with runs[0].hold():
        assert tracking.main() == 1
    assert f"not {runs[0].name}: it is being trained" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["empty", "--tensorboard"], "empty has no runs"), (["empty"], "give --tensorboard, --wandb or both"),
    ([], "RUNS_DIR")])
def test_wrong_exports_are_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tracking.py", *arguments])
    monkeypatch.setattr(tracking, "chosen_tools", lambda options: [])
    try:
        code = tracking.main()
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("package", tracking.TOOLS)
def test_a_missing_package_is_told_before_any_work(package, image_folder, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert main("mlp", "--data_dir", image_folder, "--runs_dir", tmp_path / "runs", f"--{package}") == 2
    assert re.fullmatch(rf".*: error: argument --{package}: {package} is not installed; pip install {package}, or "
                        r"pip install -r requirements-extra.txt\n", capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()
    assert main("mlp", "--data_dir", image_folder, "--runs_dir", tmp_path / "runs", "--num_epochs", 1) == 0


def test_a_folder_of_the_packages_name_is_not_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    assert main("mlp", "--runs_dir", tmp_path, "--wandb") == 2
    assert "wandb is not installed" in capsys.readouterr().err


@pytest.fixture
def tool(monkeypatch):
    """Puts a tool in TensorBoard's place that does `fault()` at one of its calls."""
    def put(when, fault) -> None:
        def at(name):
            return lambda self, *_: fault() if name == when else None

        calls = {name: at(name) for name in ("__init__", "epoch", "finish", "close")}
        monkeypatch.setitem(tracking.TOOLS, "tensorboard", type("Tool", (), {"package": "tensorboard", **calls}))
        spec = importlib.machinery.ModuleSpec("tensorboard", None, origin="here")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return put


class Panic(BaseException):
    """Of a client that is written in another language."""


def raising(error):
    def fault():
        raise error
    return fault


@pytest.mark.parametrize("when", ("__init__", "epoch", "finish", "close"))
@pytest.mark.parametrize(("fault", "reason"), [
    (raising(OSError("the disk\x1b[2J\nis full")), "OSError: the disk?[2J is full"), (sys.exit, "SystemExit: "),
    (raising(SystemExit(3)), "SystemExit: 3"), (raising(Panic("at once")), "Panic: at once"),
    (lambda: time.sleep(2), "TimeoutError: no answer within 0.3 seconds")], ids=lambda value: str(value)[:20])
def test_a_tool_that_fails_exits_or_hangs_does_not_end_the_run(when, fault, reason, tool, train, monkeypatch, capsys):
    tool(when, fault)
    monkeypatch.setattr(tracking, "LONGEST_CALL", 0.3)
    run = train("--num_epochs", 2, "--tensorboard")
    assert run.finished(2)
    assert capsys.readouterr().err.splitlines()[-1:] == [f"{run.name}: no more for tensorboard ({reason})"]


def test_ctrl_c_while_a_tool_works_ends_the_run(tool, train, monkeypatch):
    tool("epoch", lambda: time.sleep(5))
    join = threading.Thread.join

    def interrupted(thread, timeout=None):
        if timeout == tracking.LONGEST_CALL and interrupted.calls:
            raise KeyboardInterrupt
        interrupted.calls += timeout == tracking.LONGEST_CALL
        join(thread, timeout)

    interrupted.calls = 0
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(AssertionError, match="130"):
        train("--num_epochs", 2, "--tensorboard")


# What lies in the folder already


def test_a_wandb_that_is_a_link_is_not_followed(train, offline, tmp_path, capsys):
    run = train("--num_epochs", 1)
    kept = tmp_path / "elsewhere" / "offline-run-1" / "kept"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    (run.folder / "wandb").symlink_to(kept.parents[1])
    capsys.readouterr()
    assert train("--num_epochs", 2, "--wandb").finished(2)
    line, = capsys.readouterr().err.splitlines()
    assert "no more for wandb" in line and "is a link" in line
    assert [path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()] == [kept]
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a link", "huge", "no name", "nothing"])
def test_an_identity_that_is_none_is_made_again(kind, tmp_path):
    path, secret = tmp_path / "wandb" / "id", tmp_path / "secret"
    path.parent.mkdir()
    secret.write_text("hunter2")
    make = {"a pipe": lambda: os.mkfifo(path), "a folder": path.mkdir, "a link": lambda: path.symlink_to(secret),
            "huge": lambda: path.write_text("x" * 10 ** 6), "no name": lambda: path.write_text("a/../b\n"),
            "nothing": lambda: path.write_text("")}
    make[kind]()
    if kind == "a folder":
        with pytest.raises(UserError, match="cannot write"):
            tracking.run_id(path)
        return
    name = tracking.run_id(path)
    assert re.fullmatch("[0-9a-f]{12}", name) and secret.read_text() == "hunter2"
    assert tracking.run_id(path) == name


def test_a_misspelt_mode_is_one_line_before_any_work(image_folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "ofline")
    assert main("mlp", "--data_dir", image_folder, "--runs_dir", tmp_path / "runs", "--wandb") == 2
    line, = capsys.readouterr().err.splitlines()
    assert "WANDB_MODE is 'ofline'" in line and "offline" in line
    assert not (tmp_path / "runs").exists()


def test_a_run_that_diverged_has_failed_in_the_hparams_view(image_folder, tmp_path, offline):
    pytest.importorskip("tensorboard")
    from tensorboard.plugins.hparams import api_pb2

    assert main("mlp", "--data_dir", image_folder, "--runs_dir", tmp_path, "--num_epochs", 2, "--learning_rate", 1e30,
                0.001, "--tensorboard", "--wandb") == 1
    statuses = {row.hparams["learning_rate"].number_value: row.sessions[0].status for row in hparams_view(tmp_path)[1]}
    assert statuses == {1e30: api_pb2.STATUS_FAILURE, 0.001: api_pb2.STATUS_SUCCESS}
    failed, = (tmp_path / "mlp").glob("*1e+30*")
    for _ in range(100):
        codes = [record.exit.exit_code for record in records_of(RunFolder(failed)) if record.HasField("exit")]
        if codes:
            break
        time.sleep(0.2)
    assert codes == [1]
    for events in failed.glob(EVENTS):
        events.unlink()
    assert tracking.export(RunFolder(failed), [tracking.TensorBoard])  # and afterwards the same
    rows = {row.hparams["learning_rate"].number_value: row.sessions[0].status for row in hparams_view(tmp_path)[1]}
    assert rows == statuses
