"""The data sets that are not idx files: every layout, damage of every kind, downloads."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_defenses.cli.main import main
from robustbench_defenses.core import cache, registry
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.data import archive, batches, fetch, inventory, source, torchvision_shim

from .builders import Server, serving
from .formats import COUNTS, FORMATS, made, tar

NAMES = list(FORMATS)
ARCHIVED = ["cifar10", "cifar100", "stl10"]
STAND_INS = ["cifar10_jpeg", "cifar10_part"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RRD_DATA", raising=False)
    monkeypatch.delenv("RRD_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def places(name: str) -> list[str]:
    return list(registry.find("dataset", name).card["folders"])


@pytest.mark.parametrize("name", NAMES)
def test_images_and_labels_come_as_they_were_stored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    small = made(monkeypatch, name)
    for number, folder in enumerate(places(name)):
        root = tmp_path / str(number)
        small.put(root / folder)
        for split in source.SPLITS:
            read = source.load(name, split, root)
            assert read.images.dtype == torch.uint8
            assert np.array_equal(read.images.numpy(), small.images[split])
            assert np.array_equal(read.labels.numpy(), small.labels[split])


@pytest.mark.parametrize("name", ARCHIVED)
def test_an_archive_may_lie_unpacked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    small = made(monkeypatch, name)
    small.put(tmp_path / "a" / name)
    small.put(tmp_path / "b", unpacked=True)
    for split in source.SPLITS:
        packed, unpacked = (source.load(name, split, tmp_path / side) for side in "ab")
        assert packed.digest == unpacked.digest
    standing = inventory.standing(registry.find("dataset", name), tmp_path / "b")
    assert (standing.state, standing.size) == ("here", sum(map(len, small.unpacked.values())))


@pytest.mark.parametrize(
    ("name", "unpacked"), [*((name, False) for name in NAMES), *((name, True) for name in ARCHIVED)]
)
def test_truncated_and_altered_files_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, unpacked: bool
) -> None:
    small = made(monkeypatch, name)
    small.put(tmp_path / name, unpacked)
    source.load(name, "test", tmp_path)
    content = small.unpacked if unpacked else small.files
    file = next(file for file in content if "test" in file or len(content) == 1)
    path = tmp_path / name / file
    whole = content[file]
    path.write_bytes(whole[:-3])
    with pytest.raises(UserError, match=rf"{file} is truncated: .* bytes"):
        source.load(name, "test", tmp_path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=rf"{file} is altered"):
        source.load(name, "test", tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name} is not (here|whole): no .*{path.name}") as caught:
        source.load(name, "test", tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_files_are_fetched_and_verified(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    small = made(monkeypatch, name)
    files = {f"/{name}/{file}": content for file, content in small.files.items()}
    with serving(Server(files)) as server:
        done = fetch.fetch(name, tmp_path, mirror=server.url)
        assert [file.downloaded for file in done] == [True] * len(small.files)
        again = fetch.fetch(name, tmp_path, mirror=server.url)
        assert [file.downloaded for file in again] == [False] * len(small.files)
        assert len(server.asked) == len(small.files)
    assert len(source.load(name, "train", tmp_path)) == COUNTS["train"]
    assert main(["data", "verify", name, "--data", str(tmp_path), "--quiet"]) == 0


def test_a_missing_part_comes_with_its_archive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = made(monkeypatch, "cifar10")
    small.put(tmp_path / "cifar10", unpacked=True)
    (tmp_path / "cifar10/cifar-10-batches-py/data_batch_2").unlink()
    (tmp_path / "cifar10/cifar-10-batches-py/data_batch_4").write_bytes(b"")
    assert len(source.load("cifar10", "test", tmp_path)) == COUNTS["test"]  # its file is whole
    with pytest.raises(UserError, match="is not whole: no cifar-10-batches-py/data_batch_2"):
        source.load("cifar10", "train", tmp_path)
    (archive_name,) = small.files
    with serving(Server({f"/cifar10/{archive_name}": small.files[archive_name]})) as server:
        done = fetch.fetch("cifar10", tmp_path, mirror=server.url)
        assert [one.path.name for one in done if one.downloaded] == [archive_name]
    assert len(source.load("cifar10", "train", tmp_path)) == COUNTS["train"]


@pytest.mark.parametrize("name", STAND_INS)
def test_nobody_publishes_the_stand_ins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    made(monkeypatch, name)
    with pytest.raises(UserError, match=f"{name} cannot be fetched: nobody publishes it"):
        fetch.fetch(name, tmp_path)


def test_a_stand_in_is_never_taken_silently(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in STAND_INS:
        made(monkeypatch, name).put(tmp_path / name)
    named = ["--data", str(tmp_path), "--results", str(tmp_path / "results")]
    assert main(["train", "nt", "--dataset", "cifar10", "--preset", "smoke", *named]) == 2
    said = capsys.readouterr().err
    assert "cifar10 is not here: no cifar-10-python.tar.gz or cifar-10-batches-py/ in" in said
    assert "cifar10_jpeg and cifar10_part are here, which only stand in for it" in said
    assert "--dataset cifar10_jpeg" in said
    assert not (tmp_path / "results").exists()
    (tmp_path / "cifar10_jpeg/train.tar.xz").unlink()
    with pytest.raises(UserError, match="cifar10_part is here, which only stands in for it"):
        source.load("cifar10", "test", tmp_path)


def test_where_torchvision_fetches_from_is_where_we_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = made(monkeypatch, "svhn")
    sums = {file: about["md5"] for file, about in small.card["files"].items()}
    files = {f"/there/{file}": content for file, content in small.files.items()}
    with serving(Server(files)) as server:
        origin = ([f"{server.url}/there"], {**sums, "extra_32x32.mat": "0" * 32})
        monkeypatch.setattr(torchvision_shim, "origin", lambda name: origin)
        assert len(fetch.fetch("svhn", tmp_path)) == 2


def pixels(count: int = 3) -> np.ndarray:
    return np.arange(count * 3072, dtype=np.uint8).reshape(count, 3072)


def test_a_batch_of_a_newer_python_is_read_too() -> None:
    for protocol in range(5):
        content = pickle.dumps({"data": pixels(), "labels": [3, 1, 2]}, protocol)
        data, labels = batches.read_batch(content, "labels", "some batch")
        assert np.array_equal(data, pixels())
        assert labels == [3, 1, 2]


class Wicked:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("made by a pickle",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps({"data": Wicked(), "labels": []}), "which no batch needs"),
        (pickle.dumps({"data": np.array([{}], object), "labels": [1]}), "no array of unsigned"),
        (pickle.dumps({"data": pixels().astype(float), "labels": [1] * 3}), "no array of unsigned"),
        (pickle.dumps({"data": pixels(), "labels": [1]}), "do not fit"),
        (pickle.dumps({"data": pixels()[:, 1:], "labels": [1] * 3}), "do not fit"),
        (pickle.dumps({"data": pixels()}), "it has no data and labels"),
        (pickle.dumps([1, 2]), "it has no data and labels"),
        (pickle.dumps({"data": pixels(), "labels": [1] * 3})[:-40], "is not a CIFAR batch"),
        (b"\x80", "is not a CIFAR batch"),
        (b"", "is not a CIFAR batch"),
    ],
)
def test_a_pickle_that_is_no_batch_is_refused(
    content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        batches.read_batch(content, "labels", "some batch")
    assert "some batch" in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_an_archive_without_the_file_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "some.tar.gz"
    path.write_bytes(tar({"a/b": b"1"}, "w:gz"))
    assert dict(archive.each_file(path)) == {"a/b": b"1"}
    with pytest.raises(UserError, match=r"some\.tar\.gz has no a/c"):
        archive._from_tar(path, ["a/b", "a/c"])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"some\.tar\.gz is damaged"):
        list(archive.each_file(path))


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        ({"00000_1.png": b""}, "00000_1.png is not called NUMBER_LABEL.jpg"),
        ({"00001_1.jpg": b""}, "not numbered from 0 without gaps"),
        ({"00000_1.jpg": b"no picture"}, "00000 is no picture that can be read"),
    ],
)
def test_an_archive_of_other_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pictures: dict[str, bytes], said: str
) -> None:
    from robustbench_defenses.data import cifar10_jpeg

    path = tmp_path / "test.tar.xz"
    path.write_bytes(tar(pictures, "w:xz"))
    with pytest.raises(UserError, match=said):
        cifar10_jpeg._read(path)


def test_what_was_decoded_is_kept_and_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = made(monkeypatch, "cifar10_jpeg")
    small.put(tmp_path / "cifar10_jpeg")
    calls = []
    real = archive.each_file
    monkeypatch.setattr(
        "robustbench_defenses.data.cifar10_jpeg.each_file",
        lambda path: (calls.append(path), real(path))[1],
    )
    first = source.load("cifar10_jpeg", "test", tmp_path)
    assert source.load("cifar10_jpeg", "test", tmp_path).digest == first.digest
    assert len(calls) == 1
    folder = cache.cache_dir()
    assert folder is not None
    (kept,) = (folder / "decoded").iterdir()
    content = bytearray(kept.read_bytes())
    for damage in (content[:-30], b"", bytes([content[0] ^ 1]) + content[1:]):
        kept.write_bytes(damage)
        assert source.load("cifar10_jpeg", "test", tmp_path).digest == first.digest
    assert len(calls) == 4
    # Altered with checksums of its own made right.
    np.savez(kept, images=np.zeros((12, 32, 32, 3), np.uint8), labels=np.zeros(12), digest="")
    kept.with_suffix(".npz").replace(kept)
    assert source.load("cifar10_jpeg", "test", tmp_path).digest == first.digest
    assert len(calls) == 5


def test_without_a_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = made(monkeypatch, "cifar10_part")
    small.put(tmp_path / "cifar10_part")
    for folder in (None, tmp_path / "cifar10_part/test_part.bin.xz"):  # none, and none to write to
        monkeypatch.setattr(cache, "cache_dir", lambda folder=folder: folder)
        assert len(source.load("cifar10_part", "test", tmp_path)) == COUNTS["test"]


def test_labels_are_held_against_the_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = made(monkeypatch, "cifar10_jpeg")
    small.put(tmp_path / "cifar10_jpeg")
    right = source.labels_digest(torch.from_numpy(small.labels["test"]))
    small.card["label_digests"]["test"] = right
    source.load("cifar10_jpeg", "test", tmp_path)
    small.card["label_digests"]["test"] = right[::-1]
    with pytest.raises(UserError, match="cifar10_jpeg test is altered: its labels"):
        source.load("cifar10_jpeg", "test", tmp_path)
