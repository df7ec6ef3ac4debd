"""Networks trained by plain PyTorch, outside the package: subjects for the comparisons.

    python benchmarks/plain.py natural second adversarial      # trains and caches the weights

`natural`: 2 epochs of cross-entropy; `second`: another width and seed; `adversarial`: PGD-7 at eps
0.3, 7 epochs (about 8 minutes on two cores). MNIST is read from $RRD_DATA/mnist. The factories of
the same names are subjects: `rrd eval benchmarks/plain.py:natural --dataset mnist`.
"""

from __future__ import annotations

import gzip
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CACHE = Path(__file__).parent / "cache"


class LeNet(nn.Module):
    """Madry's MNIST network."""

    def __init__(self, width: int = 32, hidden: int = 1024) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, 2 * width, 5, padding=2)
        self.fc1 = nn.Linear(2 * width * 49, hidden)
        self.fc2 = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def mnist(part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 28, 28) float32 in [0, 1] and labels of `train` or `t10k`."""
    folder = Path(os.environ.get("RRD_DATA", "data")) / "mnist"

    def read(kind: str, skip: int) -> Tensor:
        raw = gzip.decompress((folder / f"{part}-{kind}.gz").read_bytes())
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=skip).copy())

    images = read("images-idx3-ubyte", 16).view(-1, 1, 28, 28).float() / 255
    return images, read("labels-idx1-ubyte", 8).long()


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int) -> Tensor:
    """Madry's attack, plainly."""
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    z = torch.min(torch.max(x + eps * (2 * torch.rand_like(x) - 1), low), high)
    for _ in range(steps):
        z.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(z)
        (grad,) = torch.autograd.grad(F.cross_entropy(logits.float(), y, reduction="sum"), z)
        z = torch.min(torch.max(z.detach() + step * grad.sign(), low), high)
    return z


def train(name: str) -> LeNet:
    """Train one of the three and cache it."""
    images, labels = mnist("train")
    torch.manual_seed(1 if name == "second" else 0)
    model = LeNet(24, 512) if name == "second" else LeNet()
    model = model.to(memory_format=torch.channels_last)
    adversarial = name == "adversarial"
    epochs, batch, rate = (7 if adversarial else 2), 128, 1e-3
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    steps, begun = len(images) // batch, time.time()
    for step in range(epochs * steps):
        if step % steps == 0:
            order = torch.randperm(len(images))
        part = order[(step % steps) * batch : (step % steps + 1) * batch]
        x, y = images[part].contiguous(memory_format=torch.channels_last), labels[part]
        progress = step / (epochs * steps)
        if adversarial:
            warm = min(1, progress / 0.05) if progress < 0.6 else max(0.02, (1 - progress) / 0.4)
            optimiser.param_groups[0]["lr"] = rate * warm
            eps = 0.3 * min(1, progress / 0.3)
            x = pgd(model, x, y, eps, 0.25 * max(eps, 0.02), 7)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if step % 200 == 0:
            print(f"{name} {step}/{epochs * steps} {loss.item():.3f} {time.time() - begun:.0f} s")
    CACHE.mkdir(exist_ok=True)
    torch.save(model.state_dict(), CACHE / f"{name}.pt")
    return model


def _load(name: str) -> LeNet:
    path = CACHE / f"{name}.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: python benchmarks/plain.py {name}")
    model = LeNet(24, 512) if name == "second" else LeNet()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def natural() -> LeNet:
    """Undefended."""
    return _load("natural")


def second() -> LeNet:
    """Undefended, of another width and seed: the target of transferred images."""
    return _load("second")


def adversarial() -> LeNet:
    """Adversarially trained."""
    return _load("adversarial")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or ["natural", "second", "adversarial"]:
        train(chosen)
