"""Networks trained by plain PyTorch, outside the package: subjects for the comparisons.

    python benchmarks/plain.py natural second adversarial digits  # trains and caches the weights
    python benchmarks/plain.py cifar cifar_adversarial resnet18

On MNIST, from $RRD_DATA/mnist: `natural`: 2 epochs of cross-entropy; `second`: another width and
seed; `adversarial`: PGD-7 at eps 0.3, 7 epochs (about 8 minutes on two cores). On the 8 x 8 digits
of scikit-learn: `digits`, a smaller one, 60 epochs (seconds). On the true pixels of a part of
CIFAR-10, from $RRD_DATA/cifar10_part: `cifar`: a small residual network, 12 epochs (2
minutes on one core); `cifar_adversarial`: the same on two PGD steps at 8/255, 6 epochs;
`resnet18`: the usual ResNet-18 for 32 x 32 images after one epoch, for the sake of speed alone. The
factories of the same names are subjects: `rrd eval benchmarks/plain.py:natural --dataset mnist`.
"""

from __future__ import annotations

import gzip
import lzma
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CACHE = Path(__file__).parent / "cache"


class LeNet(nn.Module):
    """Madry's MNIST network, for images of `side` x `side` pixels."""

    def __init__(self, width: int = 32, hidden: int = 1024, side: int = 28) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, 2 * width, 5, padding=2)
        self.fc1 = nn.Linear(2 * width * (side // 4) ** 2, hidden)
        self.fc2 = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


@dataclass(frozen=True)
class GrayRecipe:
    """How a network for grey images is trained; `eps` > 0: on PGD-7 at that budget."""

    width: int = 32
    hidden: int = 1024
    side: int = 28
    epochs: int = 2
    seed: int = 0
    eps: float = 0.0

    def build(self) -> LeNet:
        return LeNet(self.width, self.hidden, self.side)


GRAY = {
    "natural": GrayRecipe(),
    "second": GrayRecipe(24, 512, seed=1),
    "adversarial": GrayRecipe(epochs=7, eps=0.3),
    "digits": GrayRecipe(16, 64, side=8, epochs=60),
}


def sklearn_digits(part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) float32 in [0, 1] and labels of `train` or `test`."""
    from robustbench_defenses.data import source

    split = source.load("digits", part)
    return source.to_float(split.images), split.labels


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
    """Train one of `GRAY` and cache it."""
    recipe = GRAY[name]
    images, labels = sklearn_digits("train") if name == "digits" else mnist("train")
    torch.manual_seed(recipe.seed)
    model = recipe.build().to(memory_format=torch.channels_last)
    epochs, batch, rate = recipe.epochs, 128, 1e-3
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    steps, begun = len(images) // batch, time.time()
    for step in range(epochs * steps):
        if step % steps == 0:
            order = torch.randperm(len(images))
        part = order[(step % steps) * batch : (step % steps + 1) * batch]
        x, y = images[part].contiguous(memory_format=torch.channels_last), labels[part]
        progress = step / (epochs * steps)
        if recipe.eps:
            warm = min(1, progress / 0.05) if progress < 0.6 else max(0.02, (1 - progress) / 0.4)
            optimiser.param_groups[0]["lr"] = rate * warm
            eps = recipe.eps * min(1, progress / 0.3)
            x = pgd(model, x, y, eps, 0.25 * max(eps, 0.02), 7)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if step % 200 == 0:
            print(f"{name} {step}/{epochs * steps} {loss.item():.3f} {time.time() - begun:.0f} s")
    _cache(name, model)
    return model


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, enter: int, leave: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(enter, leave, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(leave)
        self.conv2 = nn.Conv2d(leave, leave, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(leave)
        self.shortcut = nn.Sequential()
        if stride != 1 or enter != leave:
            short = nn.Conv2d(enter, leave, 1, stride, bias=False)
            self.shortcut = nn.Sequential(short, nn.BatchNorm2d(leave))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class ResNet(nn.Module):
    """A 3 x 3 stem, then `blocks` of each width, halving the sides from one width to the next."""

    mean: Tensor
    std: Tensor

    def __init__(self, widths: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.493, 0.483, 0.447]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.248, 0.245, 0.262]).view(1, 3, 1, 1))
        self.conv = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        layers, enter = [], widths[0]
        for place, width in enumerate(widths):
            for turn in range(blocks):
                layers.append(Block(enter, width, 2 if place and not turn else 1))
                enter = width
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(enter, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn(self.conv((x - self.mean) / self.std))))
        return self.fc(x.mean((2, 3)))


@dataclass(frozen=True)
class Recipe:
    """How a network for CIFAR-10 is trained; `eps` > 0: on two PGD steps at that budget."""

    widths: tuple[int, ...]
    blocks: int
    epochs: int
    rate: float
    eps: float = 0.0

    def build(self) -> ResNet:
        return ResNet(self.widths, self.blocks)


RECIPES = {
    "cifar": Recipe((16, 32, 64), 1, epochs=12, rate=0.1),
    "cifar_adversarial": Recipe((16, 32, 64), 1, epochs=6, rate=0.1, eps=8 / 255),
    "resnet18": Recipe((64, 128, 256, 512), 2, epochs=1, rate=0.02),
}


def cifar10_part(part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) float32 in [0, 1] and labels of `train` or `test`."""
    file = Path(os.environ.get("RRD_DATA", "data")) / "cifar10_part" / f"{part}_part.bin.xz"
    records = np.frombuffer(lzma.decompress(file.read_bytes()), np.uint8).reshape(-1, 3073)
    images = torch.from_numpy(records[:, 1:].copy()).view(-1, 3, 32, 32)
    return images.float() / 255, torch.from_numpy(records[:, 0].copy()).long()


def augmented(x: Tensor) -> Tensor:
    """Images flipped at random, and moved by up to four pixels (one move for the whole batch)."""
    flip = torch.rand(len(x)) < 0.5
    x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
    top, left = torch.randint(9, (2,)).tolist()
    return F.pad(x, (4, 4, 4, 4))[:, :, top : top + 32, left : left + 32]


def train_cifar(name: str) -> ResNet:
    """Train one of `RECIPES` (SGD, rate rising then falling linearly) and cache it."""
    recipe = RECIPES[name]
    images, labels = cifar10_part("train")
    torch.manual_seed(0)
    model = recipe.build().to(memory_format=torch.channels_last)
    batch, begun = 128, time.time()
    steps = len(images) // batch
    whole = recipe.epochs * steps
    optimiser = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    for step in range(whole):
        if step % steps == 0:
            order = torch.randperm(len(images))
        part = order[(step % steps) * batch : (step % steps + 1) * batch]
        share = min((step + 1) / (0.2 * whole), (whole - step) / (0.8 * whole))
        optimiser.param_groups[0]["lr"] = recipe.rate * share
        x, y = augmented(images[part]).contiguous(memory_format=torch.channels_last), labels[part]
        if recipe.eps:
            x = pgd(model, x, y, recipe.eps, 0.75 * recipe.eps, 2)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if not math.isfinite(loss.item()):
            raise SystemExit(f"{name}: the loss is no longer finite at step {step}")
        if step % 60 == 0:
            print(
                f"{name} {step}/{whole} {loss.item():.3f} {time.time() - begun:.0f} s", flush=True
            )
    _cache(name, model)
    test, truth = cifar10_part("test")
    with torch.no_grad():
        right = torch.cat([model.eval()(x).argmax(1) for x in test.split(250)]) == truth
    print(f"{name}: {100 * right.double().mean():.1f} % of {len(truth)} test images")
    return model


def _cache(name: str, model: nn.Module) -> None:
    CACHE.mkdir(exist_ok=True)
    torch.save(model.state_dict(), CACHE / f"{name}.pt")


def _load(name: str) -> nn.Module:
    path = CACHE / f"{name}.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: python benchmarks/plain.py {name}")
    model: nn.Module = (GRAY.get(name) or RECIPES[name]).build()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def natural() -> nn.Module:
    """Undefended, on MNIST."""
    return _load("natural")


def second() -> nn.Module:
    """Undefended, of another width and seed: the target of transferred images."""
    return _load("second")


def adversarial() -> nn.Module:
    """Adversarially trained, on MNIST."""
    return _load("adversarial")


def digits() -> nn.Module:
    """Undefended, on the digits of scikit-learn."""
    return _load("digits")


def cifar() -> nn.Module:
    """A small residual network, undefended, on CIFAR-10's first images."""
    return _load("cifar")


def cifar_adversarial() -> nn.Module:
    """The same, adversarially trained at 8/255."""
    return _load("cifar_adversarial")


def resnet18() -> nn.Module:
    """ResNet-18 after one epoch."""
    return _load("resnet18")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or list(GRAY):
        if chosen in RECIPES:
            train_cifar(chosen)
        else:
            train(chosen)
