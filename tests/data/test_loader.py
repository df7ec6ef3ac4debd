from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustbench_defenses.core import rng
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.data.loader import PADDING, Loader, crop_flip, split_validation
from robustbench_defenses.data.source import Split, split_digest, to_float


def make(count: int = 23, channels: int = 3, side: int = 6, floats: bool = False) -> Split:
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, channels, side, side + 1), generator=draw)
    pixels = images.float() / 255 if floats else images.to(torch.uint8)
    labels = torch.arange(count) % 5
    return Split(pixels, labels, split_digest(pixels, labels))


def everything(loader: Loader, epoch: int, start: int = 0) -> list[tuple[Tensor, Tensor, Tensor]]:
    return list(loader.epoch(epoch, start))


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_epoch_is_the_split_in_another_order(floats: bool, channels: int) -> None:
    split = make(floats=floats, channels=channels)
    loader = Loader(split, 5, 0, "cpu", drop_last=False)
    batches = everything(loader, 0)
    assert [len(index) for *_, index in batches] == [5, 5, 5, 5, 3]
    assert loader.steps == len(loader) == 5
    for images, labels, index in batches:
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images, to_float(split.images[index]))
        assert torch.equal(labels, split.labels[index])
    order = torch.cat([index for *_, index in batches])
    assert order.sort().values.tolist() == list(range(23))
    assert order.tolist() != list(range(23))


def test_the_short_batch_is_dropped() -> None:
    loader = Loader(make(23), 5, 0, "cpu")
    assert loader.steps == 4
    assert [len(index) for *_, index in loader.epoch(3)] == [5] * 4
    assert Loader(make(20), 5, 0, "cpu").steps == 4


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        loader = Loader(make(), 4, seed, "cpu")
        torch.rand(7)  # global random state is of no importance
        return torch.cat([index for *_, index in loader.epoch(epoch)]).tolist()

    before = torch.random.get_rng_state()
    first = order(0, 0)
    assert order(0, 0) == first
    assert order(0, 1) != first
    assert order(1, 0) != first
    torch.random.set_rng_state(before)
    order_state = torch.random.get_rng_state()
    everything(Loader(make(), 4, 0, "cpu", "crop_flip"), 0)
    assert torch.equal(torch.random.get_rng_state(), order_state)


@pytest.mark.parametrize("augment", [None, "crop_flip"])
def test_an_interrupted_epoch_goes_on(augment: str | None) -> None:
    whole = everything(Loader(make(), 4, 7, "cpu", augment), 2)
    rest = everything(Loader(make(), 4, 7, "cpu", augment), 2, start=3)
    assert len(rest) == len(whole) - 3
    for one, other in zip(whole[3:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert everything(Loader(make(), 4, 7, "cpu", augment), 2, start=5) == []


def test_augmentation_is_of_the_image_and_not_of_the_batch() -> None:
    by_size = []
    for size in (23, 4):
        loader = Loader(make(), size, 0, "cpu", "crop_flip", drop_last=False)
        images, _, index = (torch.cat(part) for part in zip(*everything(loader, 1), strict=True))
        by_size.append(images[index.argsort()])
    assert torch.equal(*by_size)
    other = Loader(make(), 23, 0, "cpu", "crop_flip")
    images, _, index = everything(other, 2)[0]
    assert not torch.equal(images[index.argsort()], by_size[0])


def test_crop_flip_is_a_crop_of_the_padded_image_or_of_its_mirror_image() -> None:
    split = make(count=400, side=5)
    images = to_float(split.images)
    keys = rng.row_keys(0, "test", torch.arange(400))
    result = crop_flip(images, keys)
    padded = torch.nn.functional.pad(images, [PADDING] * 4)
    height, width = images.shape[2:]
    crops = {
        (y, x): padded[:, :, y : y + height, x : x + width]
        for y in range(2 * PADDING + 1)
        for x in range(2 * PADDING + 1)
    }
    seen: set[tuple[int, int, bool]] = set()
    for i in range(400):
        matches = {
            (y, x, flip)
            for (y, x), crop in crops.items()
            for flip in (False, True)
            if torch.equal(crop[i].flip(2) if flip else crop[i], result[i])
        }
        assert matches
        if len(matches) == 1:
            seen |= matches
    assert {y for y, *_ in seen} == set(range(9))
    assert {x for _, x, _ in seen} == set(range(9))
    assert {flip for *_, flip in seen} == {False, True}
    assert len(seen) > 120  # of 162: offsets and flip are drawn apart from each other
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(crop_flip(images[[9, 3]], keys[[9, 3]]), result[[9, 3]])


def test_a_function_of_ones_own_augments() -> None:
    keys_seen = []

    def darken(images: Tensor, keys: Tensor) -> Tensor:
        keys_seen.append(keys)
        return images / 2

    split = make()
    images, _, index = everything(Loader(split, 23, 0, "cpu", darken), 0)[0]
    assert torch.equal(images, to_float(split.images[index]) / 2)
    assert len(set(keys_seen[0].tolist())) == 23


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1 is needed"):
        Loader(make(), 0, 0, "cpu")
    with pytest.raises(UserError, match="24 is larger than the 23 training images"):
        Loader(make(), 24, 0, "cpu")
    with pytest.raises(UserError) as caught:
        Loader(make(), 4, 0, "cpu", "crop-flip")
    assert "did you mean 'crop_flip'" in str(caught.value.hint)


@pytest.mark.parametrize(("asked", "held"), [(5, 5), (0.2, 5), (1, 1), (22, 22)])
def test_split_validation(asked: float, held: int) -> None:
    split = make()
    # Every image says who it is.
    split.images[:, 0, 0, 0] = torch.arange(23).to(torch.uint8)
    train, validation = split_validation(split, asked, seed=3)
    assert len(validation) == held
    ours = [part.images[:, 0, 0, 0].tolist() for part in (train, validation)]
    assert sorted(ours[0] + ours[1]) == list(range(23))
    assert ours == [sorted(ours[0]), sorted(ours[1])]
    for part, numbers in zip((train, validation), ours, strict=True):
        assert torch.equal(part.labels, split.labels[numbers])
        assert part.digest == split_digest(part.images, part.labels)
    assert split_validation(split, asked, seed=3)[1].digest == validation.digest
    assert split_validation(split, asked, seed=4)[1].digest != validation.digest


@pytest.mark.parametrize("asked", [0, 23, -1, 0.0, 1.0, 1.5, 0.001])
def test_a_validation_part_that_cannot_be(asked: float) -> None:
    with pytest.raises(UserError):
        split_validation(make(), asked, seed=0)
