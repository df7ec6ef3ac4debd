"""Names and settings become one question; equal questions have equal run ids."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.registry import entries
from robustbench_defenses.defenses.base import TrainSettings
from robustbench_defenses.training.presets import COMMON
from robustbench_defenses.training.question import TRAIN_PARAMS, Question, ask

DEFENSES = [entry.name for entry in entries("defense")]


def asked(defense: str = "nt", dataset: str = "digits", **rest: Any) -> Question:
    return ask(defense, dataset, **rest)


def test_a_run_id_names_what_was_trained() -> None:
    run_id = asked("pgd_at", preset="smoke", seed=3).run_id()
    assert re.fullmatch(r"digits-lenet-pgd_at-smoke-s3-[0-9a-f]{8}", run_id)


def test_the_layers_of_settings() -> None:
    plain = asked("pgd_at", "mnist")
    assert plain.defense_settings["eps"] == 0.3  # the field
    assert plain.defense_settings["steps"] == 7  # the preset
    assert asked("pgd_at").defense_settings["eps"] == 0.2  # the card's datasets
    assert asked("pgd_at").train.batch_size == 64  # preset:dataset
    chosen = asked("pgd_at", settings={"eps": "8/255", "batch_size": "32", "model.width": "4"})
    assert chosen.defense_settings["eps"] == 8 / 255
    assert chosen.train.batch_size == 32
    assert chosen.model_settings["width"] == 4


def test_variants_are_readings_of_one_defense() -> None:
    code, paper = asked("aicr", "mnist"), asked("aicr", "mnist", variant="paper")
    assert (code.variant, paper.variant) == ("code", "paper")
    assert code.defense_settings["squared"]
    assert not paper.defense_settings["squared"]
    assert code.run_id() == asked("aicr", "mnist", variant="code").run_id()
    assert code.run_id() != paper.run_id()
    printed = {v: asked("aicr", "mnist", preset="paper", variant=v) for v in ("code", "paper")}
    epochs = {v: q.defense_settings["pretrain_epochs"] for v, q in printed.items()}
    assert epochs == {"code": 50, "paper": 150}


def test_a_presets_network_settings_speak_of_its_own_network() -> None:
    assert asked("aicr", "mnist").model == "cnn6"
    assert asked("aicr", "mnist").model_settings["width"] == 16
    assert asked("aicr", "mnist", model="cnn6").model_settings["width"] == 16
    assert asked("aicr", "mnist", model="lenet").model_settings["width"] == 32


def test_a_data_set_names_its_network_and_augmentation() -> None:
    for dataset in ("cifar10", "cifar100", "stl10", "cifar10_part", "cifar10_jpeg"):
        question = asked("nt", dataset)
        assert (question.model, question.train.augment) == ("resnet18", "crop_flip")
    assert asked("nt", "svhn").train.augment == "none"
    assert asked("nt", "cifar10", settings={"augment": "none"}).train.augment == "none"
    assert asked("nt", "mnist").model == "lenet"
    assert asked("nt", "cifar10", model="resnet20").model == "resnet20"


def test_what_a_card_says_of_a_data_set_holds_for_its_stand_ins() -> None:
    for dataset in ("cifar10", "cifar10_part", "cifar10_jpeg"):
        question = asked("aicr", dataset)
        assert question.model == "resnet110"
        assert question.defense_settings["eps_high"] == 0.03
    assert len({asked("nt", name).run_id() for name in ("cifar10", "cifar10_jpeg")}) == 2
    # A preset's width is for the networks that the card names, not for one the data set names.
    assert asked("aicr", "digits", preset="smoke").model_settings["width"] == 8
    assert asked("aicr", "cifar10", preset="smoke").model_settings["width"] == 8
    assert asked("aicr", "stl10", preset="smoke").model == "resnet18"
    assert asked("aicr", "stl10", preset="smoke").model_settings["width"] == 64


def test_an_argument_that_is_missing_stays_missing() -> None:
    assert asked(dataset="npz:").dataset == "npz:"


def test_the_hash_leaves_out_defaults_and_names() -> None:
    base = asked().run_id()
    default = TrainSettings().momentum
    assert asked(settings={"momentum": default, "label_smoothing": 0}).run_id() == base
    assert asked(defense="natural").run_id() == base  # an alias
    assert asked(settings={"momentum": 0.5}).run_id() != base
    assert asked(settings={"label_smoothing": 0.1}).run_id() != base
    assert asked(settings={"model.width": 8}).run_id() != base
    assert asked(precision="fp32").run_id() != base
    seeds = [asked(seed=s).run_id() for s in (0, 1)]
    assert seeds[0].rpartition("-")[2] == seeds[1].rpartition("-")[2]


def test_the_run_id_of_a_known_question_does_not_move() -> None:
    # Moves only with a card's version or a preset's content: then stored runs are orphans.
    assert asked(preset="smoke").changed == {
        "defense": {},
        "model": {},
        "train": {"epochs": 3, "batch_size": 64, "validation": 100, "limit_train": 2000},
    }
    assert asked(preset="smoke").run_id() == "digits-lenet-nt-smoke-s0-31cefa90"


@pytest.mark.parametrize("preset", COMMON)
@pytest.mark.parametrize("dataset", ["digits", "mnist", "fashion_mnist", "cifar10", "stl10"])
@pytest.mark.parametrize("defense", DEFENSES)
def test_every_preset_of_every_defense_resolves(defense: str, dataset: str, preset: str) -> None:
    question = asked(defense, dataset, preset=preset)
    assert question.train.epochs >= 1
    assert not set(question.defense_settings) & set(TRAIN_PARAMS)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"defense": "ntt"}, "unknown defense 'ntt'"),
        ({"dataset": "mnits"}, "unknown dataset 'mnits'"),
        ({"model": "lenett"}, "unknown model 'lenett'"),
        ({"preset": "fast"}, "unknown preset 'fast'"),
        ({"variant": "paper"}, "nt has no variant 'paper'"),
        ({"seed": -1}, "seed -1"),
        ({"settings": {"epoch": 3}}, "nt has no setting 'epoch'"),
        ({"settings": {"epochs": "three"}}, "epochs=three is not a whole number"),
        ({"settings": {"epochs": 0}}, "epochs = 0"),
        ({"settings": {"model.depth": 3}}, "lenet has no parameter 'depth'"),
        ({"settings": {"model.width": 0}}, "width=0 is below"),
        ({"settings": {"label_smoothing": 2}}, "label_smoothing=2 is above"),
        ({"settings": {"schedule": "step"}}, "schedule=step is not one of"),
    ],
)
def test_bad_input_is_named(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        asked(**bad)


def test_files_are_part_of_the_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net-2.py"
    source = "from torch import nn\ndef build(shape, classes):\n    return nn.Flatten()\n"
    file.write_text(source)
    monkeypatch.chdir(tmp_path)
    first = asked(model="net-2.py:build")
    assert first.model == f"{file}:build"  # found again from anywhere
    assert first.run_id().startswith("digits-build-nt-quick-s0-")
    assert first.run_id() == asked(model=f"{file}:build").run_id()
    file.write_text(source + "# other\n")
    assert first.run_id() != asked(model="net-2.py:build").run_id()


def test_data_files_enter_by_their_digest(tmp_path: Path) -> None:
    question = asked(dataset=f"npz:{tmp_path / 'my-data.npz'}")
    assert question.run_id("abc").startswith("npz_my_data-lenet-nt-quick-s0-")
    assert question.run_id("abc") != question.run_id("abd")
