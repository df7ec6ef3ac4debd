from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_defenses.cli.main import main
from robustbench_defenses.core import registry
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.settings import shown
from robustbench_defenses.data import locate, source

from .builders import SIDE, Small, small_mnist


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.delenv("RRD_DATA", raising=False)
    return small_mnist(monkeypatch)


def test_digits_are_exact_and_the_last_360_are_the_test_set() -> None:
    from sklearn.datasets import load_digits

    content = load_digits()
    train, test = source.load("digits", "train"), source.load("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.dtype == torch.float32
    together = torch.cat([train.images, test.images])
    assert together.shape == (1797, 1, 8, 8)
    assert np.array_equal(together[:, 0].double().numpy() * 16, content.images)
    assert torch.cat([train.labels, test.labels]).tolist() == content.target.tolist()
    assert train.digest != test.digest
    info = source.describe("Digits")
    assert (info.name, info.shape, info.classes) == ("digits", (1, 8, 8), 10)
    assert info.class_names == tuple("0123456789")


def test_other_content_than_the_card_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    content = sklearn.datasets.load_digits()
    content.target[-1] = 3
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: content)
    source.load("digits", "train")
    with pytest.raises(UserError, match="digits test is altered"):
        source.load("digits", "test")


@pytest.mark.parametrize("folder", ["mnist", "mnist/MNIST/raw", "MNIST/raw"])
@pytest.mark.parametrize("unzipped", [False, True])
def test_every_layout(small: Small, tmp_path: Path, folder: str, unzipped: bool) -> None:
    small.put(tmp_path / folder, unzipped)
    for split in source.SPLITS:
        read = source.load("mnist", split, tmp_path)
        assert np.array_equal(read.images[:, 0].numpy(), small.arrays[split, "images"])
        assert np.array_equal(read.labels.numpy(), small.arrays[split, "labels"])
    assert source.describe("mnist", tmp_path).shape == (1, SIDE, SIDE)


def test_where_data_are_looked_for(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        source.load("mnist", "test")
    assert "no t10k-images-idx3-ubyte(.gz) in data/mnist, " in caught.value.message
    assert "rrd data fetch mnist" in str(caught.value.hint)
    small.put(tmp_path / "data/mnist")
    assert len(source.load("mnist", "test")) == 10
    monkeypatch.setenv("RRD_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"there is no folder .*elsewhere"):
        source.load("mnist", "test")
    assert len(source.load("mnist", "test", "data")) == 10  # --data before RRD_DATA
    monkeypatch.setenv("RRD_DATA", "")
    assert len(source.load("mnist", "test")) == 10


def test_describing_a_data_set_that_is_not_here(small: Small, tmp_path: Path) -> None:
    assert source.describe("mnist", tmp_path).classes == 10


@pytest.mark.parametrize("unzipped", [False, True])
@pytest.mark.parametrize("file", ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_truncated_and_altered_files_are_named(
    small: Small, tmp_path: Path, unzipped: bool, file: str
) -> None:
    folder = tmp_path / "mnist"
    small.put(folder, unzipped)
    path = folder / (file.removesuffix(".gz") if unzipped else file)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(UserError, match=f"{path} is truncated"):
        source.load("mnist", "test", tmp_path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{path} is altered"):
        source.load("mnist", "test", tmp_path)
    assert len(source.load("mnist", "train", tmp_path)) == 20  # its files are whole


def test_the_digest_is_of_what_was_decoded(small: Small, tmp_path: Path) -> None:
    small.put(tmp_path / "a" / "mnist")
    small.put(tmp_path / "b" / "MNIST/raw", unzipped=True)
    digests = [source.load("mnist", "test", tmp_path / side).digest for side in "ab"]
    assert digests[0] == digests[1]
    images = torch.from_numpy(small.arrays["test", "images"])[:, None]
    labels = torch.from_numpy(small.arrays["test", "labels"]).long()
    assert digests[0] == source.split_digest(images, labels)
    other = labels.clone()
    other[3] += 1
    assert source.split_digest(images, other) != digests[0]
    assert source.split_digest(images.transpose(2, 3), labels) != digests[0]


def test_to_float() -> None:
    every = torch.arange(256).to(torch.uint8)
    expected = torch.from_numpy(np.arange(256, dtype=np.float32) / np.float32(255))
    assert torch.equal(source.to_float(every), expected)
    some = torch.rand(5)
    assert torch.equal(source.to_float(some), some)


def test_take_keeps_order_and_has_a_digest_of_its_own() -> None:
    split = source.load("digits", "test")
    part = source.take(split, torch.tensor([5, 2]))
    assert torch.equal(part.images, split.images[[5, 2]])
    assert part.labels.tolist() == split.labels[[5, 2]].tolist()
    assert part.digest == source.take(split, torch.tensor([5, 2])).digest
    assert part.digest != source.take(split, torch.tensor([2, 5])).digest


def test_budgets_are_shown_as_people_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "cifar10"]) == 0
    assert "linf  0, 2/255, 4/255, 8/255, 16/255, 32/255" in capsys.readouterr().out
    numbers = (8 / 255, 0.3, 51 / 255, 5 / 6, 1 / 17, float("inf"), float("nan"))
    said = [shown(number) for number in numbers]
    assert said == ["8/255", "0.3", "0.2", "5/6", "15/255", "inf", "nan"]
    assert shown(1 / 7) == repr(1 / 7)


def test_unknown_names() -> None:
    with pytest.raises(UserError) as caught:
        source.load("pnist", "test")
    assert "mnist" in str(caught.value.hint)
    with pytest.raises(ValueError, match="neither train nor test"):
        source.load("digits", "validation")


TOY = '''"""A toy."""
from dataclasses import dataclass
import numpy as np
import torch
from robustbench_defenses.data.source import Split

{card}

@dataclass(frozen=True)
class Toy:
    count: int = 6
{attributes}
    def load(self, split, where):
        print("a data set may talk")
        {body}
        images = torch.zeros(self.count, 2, 4, 5, dtype=torch.uint8)
        return Split(images, torch.arange(self.count) % 3)
'''


def toy(folder: Path, card: str = "", attributes: str = "", body: str = "pass") -> str:
    path = folder / "toy_data.py"
    path.write_text(TOY.format(card=card, attributes=attributes, body=body))
    return f"{path}:Toy"


def test_a_file_without_a_card_is_described_by_its_arrays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = toy(tmp_path)
    split = source.load(name, "train")
    assert split.images.shape == (6, 2, 4, 5)
    assert len(split.digest) == 64
    info = source.describe(name)
    assert (info.name, info.shape, info.classes, dict(info.grids)) == (name, (2, 4, 5), 3, {})
    assert capsys.readouterr().out == ""


def test_a_file_with_a_card(tmp_path: Path) -> None:
    card = (
        'CARD = {"object": "Toy", "version": 1, "shape": [2, 4, 5], "classes": 7,'
        ' "grids": {"linf": [0.0, 0.5]}}'
    )
    info = source.describe(toy(tmp_path, card, body="raise ValueError"))
    assert (info.shape, info.classes, info.grids) == ((2, 4, 5), 7, {"linf": [0.0, 0.5]})


def test_a_file_with_attributes(tmp_path: Path) -> None:
    info = source.describe(toy(tmp_path, attributes="    classes = 9\n"))
    assert (info.shape, info.classes) == ((2, 4, 5), 9)


def test_an_evaluation_set_needs_no_training_images(tmp_path: Path) -> None:
    body = "if split == 'train': raise FileNotFoundError('no training part')"
    assert source.describe(toy(tmp_path, body=body)).classes == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1 / 0", "toy_data.py, line 15: ZeroDivisionError: division by zero"),
        ("return None", "gave NoneType, not a Split"),
        ("return Split(torch.zeros(3, 4, 5), torch.zeros(3).long())", "3 axes (3, 4, 5)"),
        ("return Split(np.zeros((3, 1, 4, 5)), ['a', 'b', 'c'])", "labels have dtype <U1"),
        ("return Split(np.full((1, 1, 4, 5), np.inf), [0])", "image 0 has values that are not"),
    ],
)
def test_faults_of_a_file_are_told_with_its_name(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        source.load(toy(tmp_path, body=body), "test")
    assert said in caught.value.message
    assert "toy_data.py" in caught.value.message


def test_what_a_file_declares_must_hold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images have shape \(2, 4, 5\), declared is \(1, 4, 5\)"):
        source.load(toy(tmp_path, attributes="    shape = (1, 4, 5)\n"), "test")
    with pytest.raises(UserError, match=r"label 2 \(image 2\), but there are 2 classes"):
        source.load(toy(tmp_path, attributes="    classes = 2\n"), "test")
    with pytest.raises(UserError, match=r"is not \(channels, height, width\)"):
        source.load(toy(tmp_path, attributes="    shape = (4, 5)\n"), "test")


def test_a_dataclass_that_cannot_load(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("from dataclasses import dataclass\n@dataclass\nclass Thing:\n    a: int = 1\n")
    with pytest.raises(UserError, match=r"it has no load\(split, where\)"):
        source.load(f"{path}:Thing", "test")


# What every registered data set promises, the real files where they are.
REGISTERED = [e.name for e in registry.entries("dataset") if "prefix" not in e.card]
REAL = {
    # sha256 of raw pixels (N, H, W, C) and of labels as bytes
    "mnist": (
        "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    ),
    "fashion_mnist": (
        "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    ),
    "cifar10_part": (
        "48bde46fb9080c13770d6a8c4163dc24cff90c2802470aa26c4d6c392faf50f3",
        "c5cc3963df7952a390249eaf62a93a87c0fd0f0f2c0a4172c3f19c0a634b6e68",
    ),
}


@pytest.mark.parametrize("name", REGISTERED)
def test_cards_are_complete(name: str) -> None:
    card = registry.find("dataset", name).card
    assert len(card["shape"]) == 3
    assert len(card.get("class_names", range(card["classes"]))) == card["classes"]
    assert card["licence"]
    for grid in card["grids"].values():
        assert grid[0] == 0
        assert grid == sorted(set(grid))
    files = card.get("files", {})
    if not files:
        assert set(card["digests"]) == {"train", "test"}
    for kind in ("digests", "label_digests"):
        assert set(card.get(kind, {})) in ({"train", "test"}, set())
    for about in files.values():
        assert about["bytes"] > 0
        assert len(about["sha256"]) == 64


def where_real(name: str) -> Path | None:
    """The data folder, if the real files of a data set are there; None for an embedded one."""
    card = registry.find("dataset", name).card
    root = Path(os.environ.get("RRD_DATA") or "no such folder")
    if "files" not in card:
        return None
    if any(found.path is None for found in locate.find_files(card, root)):
        pytest.skip(f"RRD_DATA has no {name}")
    return root


@pytest.mark.parametrize("name", REGISTERED)
def test_the_real_test_set(name: str) -> None:
    card = registry.find("dataset", name).card
    split = source.load(name, "test", where_real(name))
    assert list(split.images.shape) == [card["test"], *card["shape"]]
    assert set(split.labels.tolist()) == set(range(card["classes"]))
    if name in REAL:
        labels = split.labels.to(torch.uint8).numpy().tobytes()
        parts = (split.images.permute(0, 2, 3, 1).contiguous().numpy().tobytes(), labels)
        assert tuple(hashlib.sha256(part).hexdigest() for part in parts) == REAL[name]


def test_the_real_training_set_of_a_part_of_cifar10() -> None:
    split = source.load("cifar10_part", "train", where_real("cifar10_part"))
    pixels = split.images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    digest = "d5a5a195056bc8b781d8b4c6d23d965ee5a9858e384e447f180748676d928f8d"
    assert hashlib.sha256(pixels).hexdigest() == digest
    digest = "4fc9d923d8e6e55d551534c1f888b438da339ba682cd46dad7ad3c74e44e7162"
    assert source.labels_digest(split.labels) == digest
    assert split.labels.bincount().tolist() == [810, 777, 808, 783, 856, 782, 808, 799, 835, 810]


@pytest.mark.slow
def test_the_stand_ins_show_the_same_images() -> None:
    """Equal index, equal label; JPEG moves the pixels by some 5.8/255 on average."""
    true = source.load("cifar10_part", "test", where_real("cifar10_part"))
    lossy = source.load("cifar10_jpeg", "test", where_real("cifar10_jpeg"))
    count = len(true)
    assert torch.equal(true.labels, lossy.labels[:count])
    off = (true.images.float() - lossy.images[:count].float()).abs().mean((1, 2, 3))
    assert 5 < float(off.mean()) < 7
    assert float(off.max()) < 16
