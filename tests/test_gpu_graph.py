"""The step as a CUDA graph: with a stand-in for the card here, with a card where there is one."""

import contextlib
import gc
import io
import warnings
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from comparison import DEVICES, normal
from in_process import settings_of, trainer_of
from torch import Tensor, nn

from fast.adam import Adam, step_together
from fast.gpu import guard
from fast.gpu.graph import GraphedStep, record, wants_graph
from lab.active_run import ActiveRun
from layers import BatchNorm1d, Dropout
from store.run import RunFolder

RATES = [0.01, 0.02, 0.005, 0.01]


class Training:
    """A little network, and steps on rows of its data at given rates."""

    def __init__(self, device: str = "cpu"):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(6, 8), BatchNorm1d(8), nn.ReLU(), Dropout(0.5),
                                     nn.Linear(8, 3)).to(device)
        self.rate = torch.tensor(RATES[0], device=device)
        self.optimizer = Adam(self.network.parameters(), self.rate, fused=True, capturable=True)
        self.x, self.y = normal((40, 6), device=device), torch.arange(40, device=device) % 3
        self.run = self.step

    def step(self, index: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(self.x[index])
        loss = F.cross_entropy(logits, self.y[index])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), (logits.argmax(1) == self.y[index]).sum()

    def take(self, rates: list[float] = RATES) -> list[Tensor]:
        """Some steps, and all that they leave."""
        results = []
        for i, rate in enumerate(rates):
            self.rate.fill_(rate)
            index = torch.arange(i, i + 20, device=self.x.device)
            results += self.run(index)
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [value.clone() for value in (*results, *self.network.state_dict().values(), *moments,
                                            torch.rand(3, device=self.x.device))]


def pretend(function):
    """As `record`, on a CPU: capturing runs nothing, replaying runs it all on the same tensors."""
    for _ in range(3):
        results = function()
    results = tuple(torch.full_like(result, -1) for result in results)

    def replay():
        for result, value in zip(results, function(), strict=True):
            result.copy_(value)
    return replay, results


@pytest.mark.parametrize("device", DEVICES[:2])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_graph_computes_what_the_step_does(device, steps_before):
    """From the first step on, and from a state that has moments."""
    plain, other = Training(device), Training(device)
    for training in (plain, other):
        torch.manual_seed(1)
        training.take(RATES[:steps_before])
    graph = GraphedStep(other.network, other.optimizer, pretend if device == "cpu" else record)
    other.run = partial(graph, other.step)
    torch.manual_seed(1)
    expected = plain.take()
    torch.manual_seed(1)
    found = other.take()
    assert graph.replay is not None and graph.outcome == "recorded"
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("after", [0, 2, 2.5])
def test_a_step_that_cannot_be_recorded_goes_on_without_a_graph(after):
    """It fails at once, after steps of warming up, or within one; nothing but a line comes of it."""
    def failing(function):
        for _ in range(int(after)):
            function()
        if after % 1:  # gradients are left behind
            other.network(other.x).sum().backward()
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    plain, other, said = Training(), Training(), io.StringIO()
    other.run = partial(GraphedStep(other.network, other.optimizer, failing), other.step)
    torch.manual_seed(1)
    expected = plain.take()
    torch.manual_seed(1)
    with contextlib.redirect_stderr(said):
        found = other.take()
    assert all(map(torch.equal, found, expected))
    assert len(said.getvalue().splitlines()) == 1 and "not permitted when" in said.getvalue()
    assert other.run.func.outcome.startswith("not recorded: RuntimeError: operation not permitted")


class Card:
    """Stands in for a card: its streams, its generator, and a graph that cannot be captured."""

    class Stream:
        device = "cuda:0"

        def wait_stream(self, other) -> None:
            pass

    class Generator:
        captures, seeds = False, 5

        def clone_state(self):
            spare = Card.Generator()
            spare.seeds = self.seeds
            return spare

        def graphsafe_set_state(self, spare) -> None:
            vars(self).update(captures=spare.captures, seeds=spare.seeds)

    class Graph:
        def capture_begin(self, **options) -> None:
            Card.generator.captures = True

        def capture_end(self) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    def __init__(self, monkeypatch):
        Card.generator, self.stream = Card.Generator(), Card.Stream()
        for name, value in {"Stream": Card.Stream, "CUDAGraph": Card.Graph,
                            "current_stream": lambda device=None: self.stream,
                            "set_stream": lambda stream: setattr(self, "stream", stream),
                            "_get_device_index": lambda *_: 0, "current_device": lambda: 0,
                            "default_generators": [Card.generator],
                            "synchronize": lambda: None, "empty_cache": lambda: None}.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", Card.Stream())


def test_a_capture_that_fails_gives_stream_and_generator_back(monkeypatch):
    """PyTorch itself then stays on the capture's stream, and its generator in capture."""
    card, calls = Card(monkeypatch), []
    before = card.stream

    def step():
        calls.append(card.stream)
        Card.generator.seeds += 1
        if len(calls) == 4:
            raise ValueError("not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="previous error"):
        record(step)
    assert len(calls) == 4 and before not in calls, "warmed up and captured elsewhere"
    assert card.stream is before
    assert not Card.generator.captures and Card.generator.seeds == 5


def test_config_notes_the_way_that_was_taken_and_says_where_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "OUTCOMES", {guard.CNN.what: "used"})
    ways = [guard.way_of("cnn", graph) for graph in (None, SimpleNamespace(outcome="recorded"))]
    assert ways[0] == {"kernels": "used", "cuda_graph": "off"} and ways[1]["cuda_graph"] == "recorded"
    assert guard.way_of("mlp", None)["kernels"] == "do not apply"
    folder, said = RunFolder(tmp_path), []
    run = SimpleNamespace(folder=folder, settings=settings_of("cnn", num_epochs=9),
                          config={"data": {}}, progress=SimpleNamespace(say=said.append))
    for way, epochs in zip((ways[0], ways[0], ways[1]), (0, 1, 4), strict=True):
        ActiveRun.note_way(run, way, epochs)
    config = folder.config()
    assert config["fast"] == ways[1] and len(said) == 1 and "recorded" in said[0]
    assert [(one["epoch"], one["fast"]) for one in config["origins"]] == [(1, ways[0]), (5, ways[1])]


def test_results_are_not_overwritten_by_the_next_step():
    training = Training()
    step = partial(GraphedStep(training.network, training.optimizer, pretend), training.step)
    index = torch.arange(20)
    first, *_ = step(index)
    kept = first.clone()
    step(index)
    assert torch.equal(first, kept)


def test_a_graph_is_there_on_request_and_on_a_gpu_alone(monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.delenv("CUDA_GRAPH", raising=False)
    assert not wants_graph(cuda)
    monkeypatch.setenv("CUDA_GRAPH", "1")
    assert wants_graph(cuda) and not wants_graph(cpu)


@pytest.mark.parametrize("step", [Adam.step, lambda optimizer: step_together([optimizer])])
def test_an_optimizer_that_may_be_captured_steps_without_a_graph_and_a_warning(step, monkeypatch):
    """PyTorch may warn where it finds a card and no graph on its stream."""
    training, stream = Training(), SimpleNamespace(is_capturing=lambda: False)
    training.network(training.x).sum().backward()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda: stream)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(training.optimizer)


def test_a_trainer_with_a_graph_goes_when_nobody_holds_it(monkeypatch, capsys):
    """After an error of memory the others need its place at once, not when cycles are collected."""
    monkeypatch.setattr("training.wants_graph", lambda device: True)
    trainer = trainer_of(settings_of("mlp"))
    trainer.run_epoch()
    assert trainer.graph.index is not None and "CUDA graph" in capsys.readouterr().err
    gone = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert gone() is None
    finally:
        gc.enable()
