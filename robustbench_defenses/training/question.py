"""What is asked of a training: names and settings become one resolved, typed question.

Settings come in layers, later ones win: the fields' defaults; the preset's common part
(`presets.COMMON`); the data set's `training`; the card's `datasets[dataset]`, `readings[variant]`,
`presets["*"]`, `presets[preset]`, `presets["preset:variant"]`, `presets["preset:dataset"]`; the
user's `--set`. The network, unless the user names one: the card's `models[dataset]`, the data
set's `model`, the card's `models["*"]`. What a card says of a data set holds for its stand-ins too.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import identity
from ..core.errors import UserError, did_you_mean
from ..core.registry import find
from ..core.settings import Param
from ..defenses.base import TrainSettings
from .presets import COMMON

if TYPE_CHECKING:
    from ..core.registry import Entry

TRAIN_PARAMS = {
    field.name: Param(field.name, str(field.type), field.default)
    for field in dataclasses.fields(TrainSettings)
}


@dataclass(frozen=True)
class Question:
    """One training, resolved: names as the registry finds them again, settings complete.

    `precision` is what was asked for ("auto" unless the user insisted); `sources`: digests of the
    files behind `FILE.py:NAME`, by kind.
    """

    dataset: str
    defense: str
    defense_version: int
    defense_settings: dict[str, Any]
    variant: str | None
    model: str
    model_version: int
    model_settings: dict[str, Any]
    preset: str
    train: TrainSettings
    seed: int
    precision: str
    sources: dict[str, str]
    changed: dict[str, dict[str, Any]]

    def run_id(self, data_digest: str | None = None) -> str:
        """`<dataset>-<model>-<defense>-<preset>-s<seed>-<8 hex>`.

        The hash covers what decides the training, settings only where they differ from the
        defaults; `data_digest` is part of it for data that a name does not pin down.
        """
        decided = {
            "dataset": data_digest or self.dataset,
            "defense": [_slug(self.defense), self.defense_version, self.changed["defense"]],
            "model": [_slug(self.model), self.model_version, self.changed["model"]],
            "train": self.changed["train"],
            "sources": self.sources,
        }
        if self.precision != "auto":
            decided["precision"] = self.precision
        names = [_slug(name) for name in (self.dataset, self.model, self.defense, self.preset)]
        return "-".join([*names, f"s{self.seed}", identity.short_hash(decided)])


def ask(
    defense: str,
    dataset: str,
    model: str | None = None,
    *,
    preset: str = "quick",
    variant: str | None = None,
    seed: int = 0,
    settings: Mapping[str, object] | None = None,
    precision: str = "auto",
) -> Question:
    """Resolve names and settings; anything unknown or out of range is a `UserError`."""
    defense, dataset = _absolute(defense), _absolute(dataset)
    entry = find("defense", defense)
    if preset not in COMMON:
        raise UserError(
            f"unknown preset {preset!r}", did_you_mean(preset, list(COMMON), ", ".join(COMMON))
        )
    if not 0 <= seed < 1 << 31:
        raise UserError(f"seed {seed} is not between 0 and {(1 << 31) - 1}")
    variant = _reading(entry, variant)
    data = None if ":" in dataset else find("dataset", dataset)
    data_name = data.name if data else dataset
    usual = find("model", _default_model(entry.card, data_name, data))
    network = _absolute(model) if model else usual.name
    model_entry = usual if network == usual.name else find("model", network)
    general, special = _layers(entry.card, data_name, data, preset, variant)
    layers = {
        **{key: value for key, value in general.items() if _fits(key, entry, model_entry, usual)},
        **special,
    }
    if model_entry.name != usual.name:
        # A preset's `model.*` speaks of the network it was made for.
        layers = {key: value for key, value in layers.items() if not key.startswith("model.")}
    chosen = _sort(entry, {**layers, **(settings or {})})
    train = TrainSettings(
        **{name: TRAIN_PARAMS[name].fit(value, "train") for name, value in chosen["train"].items()}
    )
    defense_settings = entry.settings(chosen["defense"])
    model_settings = model_entry.settings(chosen["model"])
    sources = {
        kind: identity.file_digest(Path(found.source_file))
        for kind, name, found in (("defense", defense, entry), ("model", network, model_entry))
        if ":" in name
    }
    return Question(
        dataset=data_name,
        defense=defense if ":" in defense else entry.name,
        defense_version=entry.version,
        defense_settings=defense_settings,
        variant=variant,
        model=network if ":" in network else model_entry.name,
        model_version=model_entry.version,
        model_settings=model_settings,
        preset=preset,
        train=train,
        seed=seed,
        precision=precision,
        sources=sources,
        changed={
            "defense": entry.changed(defense_settings),
            "model": model_entry.changed(model_settings),
            "train": {
                name: value
                for name, value in dataclasses.asdict(train).items()
                if value != TRAIN_PARAMS[name].default
            },
        },
    )


def _reading(entry: Entry, variant: str | None) -> str | None:
    """The variant in use: the first of the card's `readings` unless the user chose one."""
    readings: dict[str, Any] = entry.card.get("readings", {})
    if variant is None:
        return next(iter(readings), None)
    if variant not in readings:
        has = f"it has {', '.join(readings)}" if readings else "it has only one form"
        raise UserError(f"{entry.name} has no variant {variant!r}", hint=has)
    return variant


def _default_model(card: Mapping[str, Any], dataset: str = "", data: Entry | None = None) -> str:
    """The network that a defense's card, or else the data set's, names for a data set."""
    models: dict[str, str] = card.get("models", {})
    named = [models[name] for name in _names(dataset, data) if name in models]
    own: str | None = data.card.get("model") if data else None
    return named[-1] if named else own or models.get("*", "lenet")


def _names(dataset: str, data: Entry | None) -> list[str]:
    """What cards may call a data set, the most particular name last."""
    original: str | None = data.card.get("stand_in_for") if data else None
    return [original, dataset] if original else [dataset]


def _layers(
    card: Mapping[str, Any], dataset: str, data: Entry | None, preset: str, variant: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings that were made for any data set, and those of this one, which win."""
    presets: dict[str, dict[str, Any]] = card.get("presets", {})
    names = _names(dataset, data)
    about = {key: value for name in names for key, value in _of(card, "datasets", name).items()}
    general = {
        **COMMON[preset],
        **(data.card.get("training", {}) if data else {}),
        **about,
        **_of(card, "readings", variant),
        **presets.get("*", {}),
        **presets.get(preset, {}),
        **presets.get(f"{preset}:{variant}", {}),
    }
    special = [presets.get(f"{preset}:{name}", {}) for name in names]
    return general, {key: value for layer in special for key, value in layer.items()}


def _of(card: Mapping[str, Any], part: str, name: str | None) -> dict[str, Any]:
    found: dict[str, Any] = card.get(part, {}).get(name, {})
    return found


def _fits(key: str, entry: Entry, network: Entry, usual: Entry) -> bool:
    """Whether a setting that was made for any data set makes sense for this one's network.

    `model.*` was written with the card's `models["*"]` in mind. For a network that the card names
    for this data set it holds where that has such a setting, for one that the data set names never.
    """
    if not key.startswith("model.") or usual.name == find("model", _default_model(entry.card)).name:
        return True
    named = {find("model", name).name for name in entry.card.get("models", {}).values()}
    has = {param.name for param in network.params}
    return usual.name in named and key.removeprefix("model.") in has


def _sort(entry: Entry, settings: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    """Settings by whom they speak to: training, defense, or (`model.*`) the network."""
    own = {param.name for param in entry.params}
    sorted_: dict[str, dict[str, Any]] = {"train": {}, "defense": {}, "model": {}}
    for key, value in settings.items():
        key = key.strip().replace("-", "_")
        if key.startswith("model."):
            sorted_["model"][key.removeprefix("model.")] = value
        elif key in own:
            sorted_["defense"][key] = value
        elif key in TRAIN_PARAMS:
            sorted_["train"][key] = value
        else:
            known = sorted(own | set(TRAIN_PARAMS))
            raise UserError(
                f"{entry.name} has no setting {key!r}",
                did_you_mean(key, known, f"rrd info {entry.name}; the network's: model.NAME"),
            )
    return sorted_


def _absolute(reference: str) -> str:
    """`FILE.py:NAME` and `npz:FILE` with an absolute path, so that a run stays loadable."""
    if re.fullmatch(r".+\.py:[^:/\\]+", reference):
        file, _, name = reference.rpartition(":")
        return f"{Path(file).expanduser().resolve()}:{name}"
    if ":" in reference:
        prefix, _, file = reference.partition(":")
        if file.strip():  # else it is refused where the data set is opened
            return f"{prefix}:{Path(file.strip()).expanduser().resolve()}"
    return reference


def _slug(reference: str) -> str:
    """A name fit for a run id: `net.py:build` gives `build`, `npz:a/b-c.npz` gives `npz_b_c`."""
    if ".py:" in reference:
        reference = reference.rpartition(":")[2]
    elif ":" in reference:
        prefix, _, file = reference.partition(":")
        reference = f"{prefix}_{Path(file).stem}"
    return re.sub(r"[^a-z0-9_]+", "_", reference.lower()).strip("_") or "unnamed"
