"""Other networks of the results folder that see the same images: undefended and defended twins."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ...core.errors import UserError
from ...training import runs

if TYPE_CHECKING:
    import torch

MOST = 2  # as many sources of transfer are tried


@dataclass
class Twins:
    """Finished runs on `dataset` for images of `shape`, apart from the run `own`, newest first."""

    results_dir: Path | None = None
    dataset: str = ""
    shape: tuple[int, ...] = ()
    own: str = ""
    device: torch.device | str = "cpu"
    _loaded: dict[str, nn.Module | None] = field(default_factory=dict)

    def undefended(self) -> tuple[str, nn.Module] | None:
        """The newest run of natural training."""
        return next(iter(self._networks(["nt"])), None)

    def sources(self) -> list[tuple[str, nn.Module]]:
        """The newest undefended run, then the newest of any other defense."""
        found = self._networks(["nt"])[:1] + self._networks(None)
        return list(dict(found).items())[:MOST]

    def _networks(self, defenses: list[str] | None) -> list[tuple[str, nn.Module]]:
        """The newest usable run of `defenses` (None: of all but nt, adversarial training first)."""
        if self.results_dir is None:
            return []
        matching = [
            run
            for run in reversed(runs.all_runs(self.results_dir))
            if run.finished
            and run.id != self.own
            and run.info.dataset == self.dataset
            and tuple(run.info.shape) == self.shape
            and (run.info.defense in defenses if defenses else run.info.defense != "nt")
        ]
        matching.sort(key=lambda run: run.info.defense != "pgd_at")
        for run in matching:
            network = self._load(run)
            if network is not None:
                return [(run.id, network)]
        return []

    def _load(self, run: runs.Run) -> nn.Module | None:
        """The deployed network of a run, None where its weights cannot be read."""
        if run.id not in self._loaded:
            try:
                self._loaded[run.id] = run.deployed().to(self.device).eval()
            except UserError:
                self._loaded[run.id] = None
        return self._loaded[run.id]
