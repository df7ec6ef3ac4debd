"""An attack, a defense, a data set and a network of one file each, with no other file touched.

Inside a copy of the package they are listed, pass the registry-wide tests, train and are evaluated;
outside it the same files do so as FILE.py:NAME.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_defenses.cli.main import main
from robustbench_defenses.core.registry import ROOT

ATTACK = '''
"""Toy attack: one step along the sign of the gradient.

x' = P(x + eps sign(grad L(x, y)))                                                             (1)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_defenses.core.norms import project
from robustbench_defenses.engine.protocol import Answer, Query, Rows

CARD = {
    "object": "ToySign",
    "version": 1,
    "source": "nobody, equation 1",
    "cost": "one pass",
    "params": {"share": {"unit": "share of eps", "min": 0, "max": 1, "help": "length of the step"}},
}


@dataclass
class State:
    """`points` (B, C, H, W); `done` (B,) bool."""

    points: Tensor
    done: Tensor


@dataclass(frozen=True)
class ToySign:
    share: float = 1.0
    norm: str = "linf"

    @property
    def restarts(self) -> int:
        return 1

    def start(self, rows: Rows) -> State:
        return State(rows.images.clone(), torch.zeros_like(rows.labels, dtype=torch.bool))

    def ask(self, state: State, rows: Rows) -> Query:
        return Query(state.points, "gradient", "margin")

    def tell(self, state: State, rows: Rows, answer: Answer) -> State:
        eps = rows.eps.view(-1, 1, 1, 1) * self.share
        moved = state.points + eps * answer.gradient.sign()
        return State(project(moved, rows.images, rows.eps, "linf"), torch.ones_like(state.done))

    def finished(self, state: State, rows: Rows) -> Tensor:
        return state.done

    def last(self, state: State) -> Tensor:
        return state.points

    def passes(self, classes: int) -> tuple[int, int]:
        return 1, 1

    def travel(self, eps: float) -> float:
        return self.share * eps
'''
DEFENSE = '''
"""Toy defense: training on noise.

min E[ CE(f(x + s n), y) ],  n normal                                                          (1)
"""

from dataclasses import dataclass

import torch.nn.functional as F

from robustbench_defenses.core import rng
from robustbench_defenses.defenses.base import Phase, check_options, optimiser

CARD = {
    "object": "ToyNoise",
    "version": 1,
    "source": "nobody, equation 1",
    "models": {"*": "lenet"},
    "params": {"sigma": {"unit": "pixel units", "min": 0, "help": "size of the noise"}},
    "presets": {
        "smoke": {"epochs": 4, "batch_size": 16, "learning_rate": 0.01},
        "quick": {"epochs": 5},
        "short": {"epochs": 5},
        "paper": {"epochs": 5},
    },
}


@dataclass(frozen=True)
class ToyNoise:
    sigma: float = 0.1

    def parts(self, setup):
        return {"network": setup.model()}

    def phases(self, setup, parts):
        network = parts["network"]

        def loss(batch):
            noise = rng.normal(batch.keys("toy"), tuple(batch.images.shape[1:]))
            logits = setup.forward(network, (batch.images + self.sigma * noise).clamp(0, 1))
            return {"cross_entropy": F.cross_entropy(logits, batch.labels)}

        optimisers = (optimiser(network.parameters(), setup.settings),)
        yield Phase("train", setup.settings.epochs, optimisers, loss)

    def deployed(self, parts, options):
        check_options(options, {})
        return parts["network"]
'''
DATASET = '''
"""Toy data set: 8x8 noise with one bright stripe of three."""

from dataclasses import dataclass

CARD = {
    "object": "ToyStripes",
    "version": 1,
    "source": "nobody",
    "shape": [1, 8, 8],
    "classes": 3,
    "train": 300,
    "test": 90,
    "licence": "public domain",
    "grids": {"linf": [0.0, 0.1, 0.2, 0.4], "l2": [0.0, 0.5, 1.0], "l1": [0.0, 2.0, 4.0]},
    "digests": {
        "train": "724ca8dfb2268c83c49f72faee338f31e4e22d47761f7e81944ba524cb3c19fe",
        "test": "87adb8c92da2628253f871735addf3e80553e6197df6f1ae69070df8ab632629",
    },
}


@dataclass(frozen=True)
class ToyStripes:
    def load(self, split, where):
        import numpy as np
        import torch

        from robustbench_defenses.data.source import Split

        count = CARD[split]
        draw = np.random.default_rng(count)
        labels = np.arange(count) % 3
        images = draw.integers(0, 100, (count, 1, 8, 8)).astype(np.uint8)
        for label in range(3):
            images[labels == label, :, 1 + 2 * label] += 80
        return Split(torch.from_numpy(images), torch.from_numpy(labels))
'''
MODEL = '''
"""Toy network: one hidden layer."""

from dataclasses import dataclass

import torch
from torch import nn

CARD = {
    "object": "ToyNet",
    "version": 1,
    "source": "nobody",
    "params": {"width": {"unit": "neurons", "min": 1, "help": "size of the hidden layer"}},
}


class Network(nn.Module):
    tap_names = ("hidden",)

    def __init__(self, inputs, width, classes):
        super().__init__()
        self.hidden, self.last = nn.Linear(inputs, width), nn.Linear(width, classes)

    def tapped(self, images):
        hidden = torch.tanh(self.hidden(images.flatten(1)))
        return {"hidden": hidden, "logits": self.last(hidden)}

    def forward(self, images):
        return self.tapped(images)["logits"]


@dataclass(frozen=True)
class ToyNet:
    width: int = 16

    def build(self, shape, classes):
        channels, height, width = shape
        return Network(channels * height * width, self.width, classes)
'''
TOYS = {
    "attacks/toy_sign.py": ("ToySign", ATTACK),
    "defenses/toy_noise.py": ("ToyNoise", DEFENSE),
    "data/toy_stripes.py": ("ToyStripes", DATASET),
    "models/toy_net.py": ("ToyNet", MODEL),
}
KINDS = {"attacks": "toy_sign", "defenses": "toy_noise", "datasets": "toy_stripes",
         "models": "toy_net"}  # fmt: skip
TESTS = [
    "tests/attacks/test_properties.py",
    "tests/data/test_source.py",
    "tests/models/test_networks.py",
    "tests/training/test_question.py",
    "tests/training/test_trainer.py",
]
# Commands in one process: their exit codes and what they said, as JSON.
MANY = """
import contextlib, io, json, sys
from robustbench_defenses.cli.main import main
said = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    said.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(said))
"""
SMALL = ["--threads", "1", "--results", "results"]
SMOKE = ["--preset", "smoke", "--set", "sigma=0.05", "--set", "model.width=8", *SMALL]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its tests, and the four files in it."""
    folder = tmp_path_factory.mktemp("copy")
    without = shutil.ignore_patterns("__pycache__", "_shipped")
    for name in ("robustbench_defenses", "tests"):
        shutil.copytree(ROOT.parent / name, folder / name, ignore=without)
    shutil.copy(ROOT.parent / "pyproject.toml", folder)
    for place, (_, source) in TOYS.items():
        (folder / "robustbench_defenses" / place).write_text(source.lstrip("\n"))
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Python finds the copy first; nothing is remembered from elsewhere."""
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }


def python(folder: Path, *arguments: str, said: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(folder),
        input=said,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_inside_the_package(copy: Path) -> None:
    commands = [
        *(["list", kind, "--json"] for kind in KINDS),
        *(["info", name] for name in KINDS.values()),
        ["train", "toy_noise", "--dataset", "toy_stripes", "--model", "toy_net", *SMOKE],
        ["eval", "last", "--attack", "toy_sign,pgd", "--eps-sweep", "--json", "-n", "all", *SMALL],
        ["eval", "last", "--attack", "toy_sign", "--set", "share=2", *SMALL],
    ]
    ends = json.loads(python(copy, "-c", MANY, said=json.dumps(commands)))
    assert [code for code, *_ in ends] == [0] * 10 + [2], ends
    for (_, out, _), name in zip(ends, KINDS.values()):
        assert name in [card["name"] for card in json.loads(out)]
    for (_, out, _), name in zip(ends[4:], KINDS.values()):
        assert name in out
        assert "Toy" in out
    (run,) = (copy / "results" / "runs").iterdir()
    assert run.name.startswith("toy_stripes-toy_net-toy_noise-smoke-s0-")
    found = json.loads(ends[9][1])["results"]
    assert [one["attack"]["name"] for one in found] == ["toy_sign", "pgd_linf"]
    for one in found:
        assert one["n"] == 90
        assert [point["eps"] for point in one["curve"]] == [0.0, 0.1, 0.2, 0.4]
        assert one["clean_accuracy"] > 0.9 > one["curve"][-1]["robust_accuracy"]
    assert "share=2 is above the largest allowed value 1" in ends[10][2]
    same = filecmp.dircmp(ROOT, copy / "robustbench_defenses", ignore=["__pycache__", "_shipped"])
    assert _changed(same) == ({Path(place).name for place in TOYS}, set())


def _changed(compared: filecmp.dircmp[str]) -> tuple[set[str], set[str]]:
    """Names that only the copy has, and names whose contents differ."""
    added, other = set(compared.right_only), set(compared.diff_files)
    for inner in compared.subdirs.values():
        more = _changed(inner)
        added, other = added | more[0], other | more[1]
    return added, other


@pytest.mark.slow
def test_inside_they_pass_the_registry_wide_tests(copy: Path) -> None:
    out = python(copy, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "-k", "toy_", *TESTS)
    passed = [line for line in out.splitlines() if line.startswith("PASSED ")]
    for test in TESTS:
        assert any(test in line for line in passed), test
    assert len([line for line in passed if "test_properties" in line]) > 10
    assert "skipped" not in out.splitlines()[-1]


def test_outside_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for place, (name, source) in TOYS.items():
        path = tmp_path / Path(place).name
        path.write_text(source.lstrip("\n"))
        names.append(f"{path.name}:{name}")
    attack, defense, dataset, model = names
    train = ["train", defense, "--dataset", dataset, "--model", model, *SMOKE]
    assert main([*train, "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["run"]
    settings = ["--set", f"{attack}.share=0.5"]
    assert main(["eval", "last", "--attack", f"{attack},fgsm", *settings, "--json", *SMALL]) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert {one["attack"]["name"] for one in found} == {attack, "fgsm_linf"}
    for one in found:
        assert one["subject"]["id"] == run
        assert one["n"] == 90
        assert one["clean_accuracy"] > 0.9 > one["curve"][-1]["robust_accuracy"]
    (mine,) = [one for one in found if one["attack"]["name"] == attack]
    assert mine["attack"]["parameters"]["share"] == 0.5
    assert main(["eval", "last", "--attack", attack, *settings, *SMALL]) == 0
    assert "--fresh to ask again" in capsys.readouterr().err
    assert main(["attack", "last", "--attack", attack, "--eps", "0.2", "--results", "results"]) == 0
    assert f"{attack} at eps 0.2" in capsys.readouterr().out
    assert main(["check", "results", "--threads", "1"]) == 0
    assert main([*train]) == 0
    assert "--fresh to train again" in capsys.readouterr().err
