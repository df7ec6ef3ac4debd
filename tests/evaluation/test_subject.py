"""Subjects: what a user may name, what it becomes, and when it is another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core.errors import Interrupted, UserError
from robustbench_defenses.core.registry import ROOT
from robustbench_defenses.evaluation import foreign
from robustbench_defenses.evaluation.subject import Subject, resolve

CPU = torch.device("cpu")
NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """Ten logits of four pixels."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.layer = nn.Linear(4, 10)
        self.layer.weight.data.fill_(0.5)
        self.layer.bias.data.fill_(0.1)
        self.scale = scale

    def forward(self, images):
        return self.layer(images.flatten(1)) * self.scale


def build():
    return Net()


def sharp():
    return Net(10.0)
'''


def of_file(folder: Path, source: str = NET, name: str = "build") -> Subject:
    path = folder / "net.py"
    path.write_text(source)
    return resolve(f"{path}:{name}", folder, CPU)


def of(thing: object) -> Subject:
    """The subject of an object that is not in a file."""
    return resolve(thing, Path("results"), CPU)  # type: ignore[arg-type]


def test_a_run_by_all_its_names(
    results: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results.parent)
    names = [run_id, run_id[:-3], "last", f"results/runs/{run_id}", f"{run_id}@best"]
    subjects = [resolve(name, results, CPU) for name in names]
    assert {one.about for one in map(_frozen, subjects)} == {_frozen(subjects[0]).about}
    about = subjects[0].about
    assert (about.id, about.name, about.kind) == (run_id, run_id, "run")
    assert (about.defense, about.model, about.checkpoint) == ("nt", "lenet", "best")
    assert subjects[0].dataset == "digits"
    last = resolve(f"{run_id}@last", results, CPU)
    assert last.about.id == f"{run_id}@last"
    assert last.about.checkpoint == "last"


class _Hashable:
    """The parts of a subject's identity, comparable."""

    def __init__(self, about: str) -> None:
        self.about = about


def _frozen(subject: Subject) -> _Hashable:
    return _Hashable(subject.about.model_dump_json())


def test_a_run_in_a_folder_with_signs_in_its_name(results: Path, run_id: str) -> None:
    odd = results.parent / "me@work [old], 100%"
    results.rename(odd)
    subject = resolve(str(odd / "runs" / run_id), Path("nowhere"), CPU)
    assert subject.about.id == run_id


def test_the_weights_of_a_run_are_its_digest(results: Path, run_id: str) -> None:
    from robustbench_defenses.core.identity import tensors_digest

    subject = resolve(run_id, results, CPU)
    assert isinstance(subject.deployed, nn.Module)
    assert subject.about.weights == tensors_digest(subject.deployed.state_dict())
    assert not subject.deployed.training
    assert subject.view(None) is subject.views[0]
    assert subject.view("deployed").name == "deployed"
    with pytest.raises(UserError, match="has no view 'soft'"):
        subject.view("soft")


def test_a_factory_gives_a_module_or_a_callable(tmp_path: Path) -> None:
    module = of_file(tmp_path)
    assert isinstance(module.deployed, nn.Module)
    assert module.about.kind == "file"
    assert module.about.name.endswith("net.py:build")
    assert module.about.id.startswith("net-build-")
    assert module.dataset is None
    bare = of_file(tmp_path, NET + "\n\ndef bare():\n    return build().forward\n", "bare")
    assert not isinstance(bare.deployed, nn.Module)
    images = torch.rand(3, 1, 2, 2)
    torch.testing.assert_close(bare.deployed(images), module.deployed(images))


def test_the_same_file_is_the_same_subject(tmp_path: Path) -> None:
    first, again = of_file(tmp_path), of_file(tmp_path)
    other = tmp_path / "elsewhere"
    other.mkdir()
    moved = of_file(other)
    assert first.about.id == again.about.id == moved.about.id
    assert first.code == again.code == moved.code


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fill_(0.1)", "fill_(0.2)"),
        ("* self.scale", "* self.scale + 1"),
        ("Net()", "Net(2.0)"),
        ("nn.Linear(4, 10)", "nn.Linear(4, 10, dtype=torch.float64)"),
    ],
)
def test_an_edited_file_is_another_subject(old: str, new: str, tmp_path: Path) -> None:
    """Also where every weight is the same as before."""
    first, other = of_file(tmp_path), of_file(tmp_path, NET.replace(old, new))
    assert first.about.id != other.about.id
    assert (first.about.weights, first.code) != (other.about.weights, other.code)


def test_factories_of_one_file_differ(tmp_path: Path) -> None:
    plain, sharp = of_file(tmp_path), of_file(tmp_path, name="sharp")
    assert plain.about.weights == sharp.about.weights
    assert plain.about.id != sharp.about.id


class Scaled(nn.Module):
    """A network whose answer hangs on things that are no weights."""

    def __init__(self, scale: float, activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        with torch.no_grad():
            self.layer.weight.fill_(1.0)
            self.layer.bias.zero_()
        self.scale, self.activation = scale, activation

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.activation(self.layer(images)) * self.scale
        return result


class Shifted(Scaled):
    """The same weights and attributes, another forward pass."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 1


def test_equal_weights_do_not_make_equal_modules() -> None:
    modules: list[nn.Module] = [
        Scaled(1.0),
        Scaled(2.0),
        Scaled(1.0, torch.relu),
        Shifted(1.0),
        nn.Sequential(nn.Flatten(), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Tanh()),
        nn.Sequential(nn.Flatten(), nn.Dropout(0.1)),
        nn.Sequential(nn.Flatten(), nn.Dropout(0.2)),
    ]
    subjects = [of(module) for module in modules]
    assert len({one.about.weights for one in subjects[:4]}) == 1
    assert len({one.code for one in subjects}) == len(modules)
    assert len({one.about.id for one in subjects}) == len(modules)
    assert of(Scaled(1.0)).about == subjects[0].about
    module = Scaled(1.0)
    assert of(module.train()).about == of(module.eval()).about


def test_weights_behind_a_bare_callable_count(tmp_path: Path) -> None:
    """In its closure, a global, a default, an attribute, a partial, a list."""
    forms = {
        "closure": "net = made()\n    return lambda x: net(x)",
        "global": "return lambda x: NET(x)",
        "default": "return lambda x, net=made(): net(x)",
        "method": "return made().forward",
        "partial": "return functools.partial(use, [made()])",
        "object": "return Holder(made())",
    }
    for name, body in forms.items():
        digests = set()
        for value in (0.1, 0.2):
            (tmp_path / "weight.txt").write_text(str(value))
            file = tmp_path / f"{name}{int(10 * value)}.py"
            # The text is the same in both; what lies beside it is not.
            file.write_text(
                "import functools\nfrom pathlib import Path\nfrom torch import nn\n\n\n"
                "def made():\n"
                "    net = nn.Linear(4, 3)\n"
                "    value = float((Path(__file__).parent / 'weight.txt').read_text())\n"
                "    net.weight.data.fill_(value)\n"
                "    net.bias.data.zero_()\n"
                "    return net\n\n\n"
                "def use(nets, x):\n    return nets[0](x)\n\n\n"
                "class Holder:\n"
                "    def __init__(self, net):\n        self.net = net\n\n"
                "    def __call__(self, x):\n        return self.net(x)\n\n\n"
                f"NET = made()\n\n\ndef build():\n    {body}\n"
            )
            subject = resolve(f"{file}:build", tmp_path, CPU)
            assert not isinstance(subject.deployed, nn.Module)
            digests.add(subject.about.weights)
        assert len(digests) == 2, name


def test_what_a_factory_prints_goes_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_file(tmp_path, NET + "\n\ndef loud():\n    print('hello')\n    return Net()\n", "loud")
    said = capsys.readouterr()
    assert said.out == ""
    assert "hello" in said.err


def test_guarded_tells_whose_fault_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(UserError, match=r"net raises RuntimeError: mat1 and mat2"),
        foreign.guarded("net"),
    ):
        nn.Linear(3, 2)(torch.zeros(1, 4))
    with pytest.raises(UserError, match="net raises KeyError: 'a'"), foreign.guarded("net"):
        {}["a"]
    for passing in (UserError("mine"), Interrupted("stopped"), KeyboardInterrupt()):
        with pytest.raises(type(passing)), foreign.guarded("net"):
            raise passing
    # An exception that begins in the package itself is a defect of ours.
    code = compile("raise ValueError('ours')", str(ROOT / "engine" / "search.py"), "exec")
    with pytest.raises(ValueError, match="ours"), foreign.guarded("net"):
        exec(code)
    with foreign.guarded("net"):
        print("hello")
    assert capsys.readouterr().out == ""
