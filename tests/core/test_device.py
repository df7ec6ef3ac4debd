"""Device, precision and threads are decided by capability; the impossible is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from robustbench_defenses.core import device as devices
from robustbench_defenses.core.device import PRECISIONS, has_fast_bf16, machine
from robustbench_defenses.core.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Settings of torch are global: put them back."""
    threads = torch.get_num_threads()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two CUDA devices of capability 8.0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(devices, "has_fast_bf16", has_fast_bf16.__wrapped__)
    return monkeypatch


def test_defaults_resolve() -> None:
    here = machine()
    assert here.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert here.precision == ("bf16" if has_fast_bf16(here.device) else "fp32")
    assert here.threads == torch.get_num_threads()
    assert here.autocast == (here.precision == "bf16")


@pytest.mark.parametrize("fast", [True, False])
def test_auto_precision_follows_capability(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: fast)
    assert machine("cpu").precision == ("bf16" if fast else "fp32")
    assert machine("cpu", "fp32").precision == "fp32"  # what is asked for is not overruled
    assert machine("cpu", "bf16").precision == "bf16"


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("avx", [True, False])
def test_cpu_capability(monkeypatch: pytest.MonkeyPatch, amx: bool, avx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert has_fast_bf16.__wrapped__(CPU) is (amx or avx)


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cuda_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fast: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_fast_bf16.__wrapped__(torch.device("cuda", 0)) is fast


def test_other_devices_have_no_fast_bf16() -> None:
    assert has_fast_bf16.__wrapped__(torch.device("mps")) is False


def test_cuda_is_taken_where_it_is(pretend: pytest.MonkeyPatch) -> None:
    assert machine("auto").device == torch.device("cuda")
    assert machine("cuda:1").device == torch.device("cuda:1")
    assert machine("cuda").precision == "bf16"
    with pytest.raises(UserError, match="only 2 CUDA devices"):
        machine("cuda:2")


def test_verdicts_on_cuda_are_strict_float32(pretend: pytest.MonkeyPatch) -> None:
    machine("cuda", "tf32")
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    for precision in ("fp32", "bf16", "auto"):
        machine("cuda", precision)
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("name", ["gpu", "", "cuda:-1", "cuda:x", "meta", "xpu", "CPU0"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="unknown device") as caught:
        machine(name)
    assert "cuda:0" in str(caught.value.hint)


def test_absent_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        machine("cuda")
    with pytest.raises(UserError, match="no Metal device"):
        machine("mps")
    assert machine("auto").device == CPU


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(UserError, match="fp16") as caught:
        machine("cpu", "fp16")
    assert all(name in str(caught.value.hint) for name in PRECISIONS)


def test_threads() -> None:
    assert machine("cpu", threads=1).threads == 1
    assert torch.get_num_threads() == 1
    for wrong in (0, -2):
        with pytest.raises(UserError, match=f"--threads {wrong}"):
            machine("cpu", threads=wrong)
    assert torch.get_num_threads() == 1
