#!/usr/bin/env python3
"""The plain loop that the bench compares with: what a course hands in, correct and unhurried.

Reads the images through torchvision, one by one; TensorDataset and a shuffling DataLoader, layers composed of plain
tensor operations, `.item()` in every step, the default allocator, one process per run. Trains a few steps and prints,
as JSON, what they and the rest cost.
"""

import argparse
import json
import sys
import time
from pathlib import Path

START = time.perf_counter()
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms import ToTensor

from load_data import load_cifar_4d, normalize


def peak_mb():
    """The peak memory of this process. getrusage would count the parent's as well."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def read(data_dir, train):
    """The training or the test set as float images, N x 3 x 32 x 32, and labels."""
    if data_dir == "synthetic":
        data = load_cifar_4d(synthetic=True)
        images, labels = data.train if train else data.test
        return normalize(images), labels
    folder = Path(data_dir) / ("train" if train else "test")
    dataset = ImageFolder(folder, ToTensor()) if folder.is_dir() else CIFAR10(data_dir, train, ToTensor())
    images, labels = torch.empty(len(dataset), 3, 32, 32), torch.empty(len(dataset), dtype=torch.int64)
    for i, (image, label) in enumerate(dataset):  # a list of them would leave its memory to the training's tensors
        images[i], labels[i] = image - 128 / 255, label
    return images, labels


class PlainBatchNorm(nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x):
        dims = [0, 2, 3] if x.dim() == 4 else [0]
        shape = [1, -1, 1, 1] if x.dim() == 4 else [1, -1]
        if self.training:
            mean, var = x.mean(dims), x.var(dims, correction=0)
            n = x.numel() / x.size(1)
            with torch.no_grad():
                self.running_mean = 0.9 * self.running_mean + 0.1 * mean
                self.running_var = 0.9 * self.running_var + 0.1 * var * n / (n - 1)
        else:
            mean, var = self.running_mean, self.running_var
        x = (x - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-5)
        return x * self.weight.view(shape) + self.bias.view(shape)


class PlainDropout(nn.Module):
    def __init__(self, p, whole_maps):
        super().__init__()
        self.p, self.whole_maps = p, whole_maps

    def forward(self, x):
        if not self.training:
            return x
        mask = torch.rand(x.shape[:2] if self.whole_maps else x.shape) > self.p
        return x * (mask[:, :, None, None] if self.whole_maps else mask) / (1 - self.p)


def plain_network(name):
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, 100), PlainBatchNorm(100), nn.ReLU(),
                             PlainDropout(0.2, False), nn.Linear(100, 10))
    return nn.Sequential(
        nn.Conv2d(3, 128, 5), PlainBatchNorm(128), nn.ReLU(), PlainDropout(0.2, True), nn.MaxPool2d(2),
        nn.Conv2d(128, 64, 3), PlainBatchNorm(64), nn.ReLU(), PlainDropout(0.2, True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2304, 10))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("mlp", "cnn"))
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--evaluations", type=int, required=True, help="batches to evaluate")
    options = parser.parse_args()

    train, test = (DataLoader(TensorDataset(*read(options.data_dir, train)), options.batch_size, shuffle=train)
                   for train in (True, False))
    network = plain_network(options.network)
    optimizer = torch.optim.Adam(network.parameters(), 0.001)
    ready = time.perf_counter()

    def step(x, y):
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(x, y):
        logits = network(x)
        return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()

    seconds = {}
    for name, work, loader, count in (("step", step, train, options.steps),
                                      ("evaluation", evaluate, test, options.evaluations)):
        network.train(name == "step")
        times, last = [], time.perf_counter()
        for i, (x, y) in enumerate(loader):
            work(x, y)
            times.append(time.perf_counter() - last)
            last = time.perf_counter()
            if i + 1 >= count:
                break
        seconds[name] = times
    print(json.dumps({"start": ready - START, **seconds}))


if __name__ == "__main__":
    main()
