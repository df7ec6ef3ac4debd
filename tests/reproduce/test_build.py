"""Items from outcomes: what is told of the trainings behind them."""

from __future__ import annotations

from robustbench_defenses.reproduce.build import _deviations
from robustbench_defenses.reproduce.jobs import Training


def test_what_a_recipe_changes_at_a_preset_is_told() -> None:
    narrow = (("model.width", 16),)
    training = Training("nt", "mnist", "cnn6", "quick", settings=narrow, printed=())
    assert "width 16 instead of 32" in _deviations(training)
    unsaid = Training("nt", "mnist", "cnn6", "quick", settings=narrow)
    assert not any(one.startswith("width") for one in _deviations(unsaid))
