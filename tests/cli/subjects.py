"""Networks, attacks and files for tests of the command line: some good, most of them broken."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

# A good factory, a slow one, and one that speaks; all of the same weights.
GOOD = '''
import os
import time

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    """The nearest of ten random prototypes, by a linear layer."""

    def __init__(self):
        super().__init__()
        draw = np.random.default_rng(0)
        self.layer = nn.Linear(64, 10)
        self.layer.weight.data = torch.from_numpy(draw.normal(size=(10, 64))).float()
        self.layer.bias.data = torch.zeros(10)

    def forward(self, images):
        time.sleep(float(os.environ.get("SLOW", "0")))
        return self.layer(images.flatten(1) - 0.5)


def build():
    return Net()


def speaks():
    print("the factory speaks")
    net = Net()

    def forward(images):
        print("the network speaks")
        return net(images)

    return forward
'''

BAD = '''
from dataclasses import dataclass

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.layer = nn.Linear(64, classes)
        # Always says 3: some images are classified rightly, so there is something to attack.
        self.layer.bias.data[3] += 1000

    def forward(self, images):
        return self.layer(images.flatten(1))


def raises():
    raise RuntimeError("the weights are gone")


def leaves():
    raise SystemExit(3)


def wants(path):
    return Net()


def text():
    return "a network"


number = 7


def nan():
    return lambda images: torch.full((len(images), 10), torch.nan)


def late_nan():
    """NaN for the sixth image of the test set alone."""
    net = Net()

    def forward(images):
        logits = net(images)
        if len(images) == 20:
            logits = logits.index_fill(0, torch.tensor([5]), torch.nan)
        return logits

    return forward


def infinite():
    return lambda images: torch.full((len(images), 10), torch.inf)


def shape():
    return lambda images: images


def one_row():
    return lambda images: Net()(images).mean(0, keepdim=True)


def few():
    return Net(5)


def pair():
    net = Net()
    return lambda images: (net(images), images)


def array():
    return lambda images: Net()(images).detach().numpy()


def fails():
    def forward(images):
        raise ValueError("no such layer")

    return forward


def small_images():
    return nn.Sequential(nn.Flatten(), nn.Linear(49, 10))


def no_gradient():
    net = Net()

    def forward(images):
        if images.requires_grad:
            raise ValueError("inference only")
        return net(images)

    return forward


@dataclass(frozen=True)
class NoAttack:
    """No attack at all."""

    steps: int = 3


@dataclass(frozen=True)
class Crash:
    """An attack that fails in its first step."""

    norm: str = "linf"
    restarts: int = 1

    def start(self, rows):
        return rows.nothing

    def ask(self, state, rows): ...

    def tell(self, state, rows, answer): ...

    def finished(self, state, rows): ...

    def last(self, state): ...

    def passes(self, classes):
        return 1, 1


@dataclass(frozen=True)
class NoData:
    """No data set at all."""


@dataclass(frozen=True)
class NoDefense:
    """No defense at all."""
'''


def images(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random images (count, 8, 8) in [0, 1], labelled by the good network of this file."""
    weight = np.random.default_rng(0).normal(size=(10, 64)).astype(np.float32)
    pixels = np.random.default_rng(1 + seed).random((count, 8, 8)).astype(np.float32)
    # A little of the label's prototype makes the margins comfortable and finite.
    pixels = np.clip(pixels * 0.5 + 0.25, 0, 1).astype(np.float32)
    return {"images": pixels, "labels": ((pixels.reshape(count, 64) - 0.5) @ weight.T).argmax(1)}


def write_files(folder: Path) -> None:
    """Every file that the table of bad input names, except runs and results."""
    (folder / "net.py").write_text(GOOD)
    (folder / "bad.py").write_text(BAD)
    (folder / "syntax.py").write_text("def build(:\n    pass\n")
    (folder / "weights.pt").write_bytes(b"\x80\x02}q\x00.")
    (folder / "file").write_text("a regular file\n")
    (folder / "nodata").mkdir()
    good = images(20)
    arrays = {
        "good": good,
        "nolabels": {"images": good["images"]},
        "outside": {**good, "images": good["images"] * 255},
        "nan": {**good, "images": np.where(good["images"] < 0.3, np.nan, good["images"])},
        "shapes": {**good, "images": good["images"].reshape(20, 64)},
        "fewlabels": {**good, "labels": good["labels"][:7]},
        "floatlabels": {**good, "labels": good["labels"] / 2},
        "negative": {**good, "labels": good["labels"] - 5},
        "pickled": {**good, "labels": np.array([{"label": 1}] * 20, dtype=object)},
    }
    for name, content in arrays.items():
        np.savez(folder / f"{name}.npz", **content)  # type: ignore[arg-type]
    whole = (folder / "good.npz").read_bytes()
    (folder / "truncated.npz").write_bytes(whole[: len(whole) // 2])


def write_results(folder: Path, run_id: str) -> None:
    """Damaged copies of the run in `folder/results`, and files that are no results."""
    import safetensors.torch
    import torch

    runs = folder / "results" / "runs"

    def copy(name: str) -> Path:
        return Path(shutil.copytree(runs / run_id, runs / name)) / "weights" / "best.safetensors"

    missing = copy("missing")
    missing.unlink()
    truncated = copy("truncated")
    truncated.write_bytes(truncated.read_bytes()[:1000])
    whole = safetensors.torch.load(copy("pickle").read_bytes())
    torch.save(whole, runs / "pickle" / "weights" / "best.safetensors")
    for name, change in (("misfit", {"network.fc1.bias": torch.zeros(3)}), ("lacks", None)):
        path = copy(name)
        with safetensors.safe_open(path, framework="pt") as opened:
            header = opened.metadata()
        tensors = {**whole, **(change or {})}
        if change is None:
            del tensors["network.fc1.bias"]
        safetensors.torch.save_file(tensors, path, header)
    copy("stranger")
    safetensors.torch.save_file(whole, runs / "stranger" / "weights" / "best.safetensors")
    for name in ("malformed", "unfinished"):
        copy(name)
    (runs / "malformed" / "run.json").write_text("{")
    info = (runs / "unfinished" / "run.json").read_text()
    (runs / "unfinished" / "run.json").write_text(info.replace('"finished"', '"unfinished"', 1))
    (folder / "malformed.json").write_text('{"schema": "rrd.result/1",')
    (folder / "other.json").write_text('{"name": "something else"}')
    (folder / "future.json").write_text('{"schema": "rrd.result/9"}')
    (folder / "lacking.json").write_text('{"schema": "rrd.result/1", "key": "abc"}')
    (folder / "result.yaml").write_text("a: [1,\nb: 2\n")
