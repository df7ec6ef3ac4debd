"""Defects known from other attack libraries.

Each test of the files `test_defects_*.py` holds one way in which a published implementation gave
wrong results, changed what it was lent, or wasted its budget. `DEFECTS` says which tests would fail
if an attack of ours had a defect.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from tests.engine import oracles

# Number, defect, and the tests (file::name, below `tests`; without a file: in one of the files
# `test_defects_*.py` beside this one). Left out are 24, 27, 28 and 30, which are about packages and
# not about attacks.
DEFECTS = {
    (1, "failures reported as successes"): [
        "test_failures_are_not_reported_as_successes",
        "attacks/test_properties.py::test_zero_gradient_gives_no_result",
    ],
    (2, "AutoAttack with a tenth of its iterations"): [
        "test_autoattack_has_the_published_budget",
        "test_survivors_get_the_declared_passes",
    ],
    (3, "C&W cannot move black and white pixels"): [
        "test_pixels_at_exactly_0_and_1_can_move",
        "attacks/test_strength.py::test_cw_comes_as_near_as_ddn",
    ],
    (4, "masked scores count as score 0"): [
        "attacks/test_properties.py::test_constant_added_to_all_logits_changes_nothing",
        "engine/test_losses.py::test_a_constant_added_to_all_logits_changes_nothing",
    ],
    (5, "a stopped run cannot go on"): [
        "engine/test_snapshot.py::test_every_attack_goes_on",
        "cli/test_resume.py::test_killed_at_any_moment_the_result_is_equal",
    ],
    (6, "DeepFool stalls, NaN images"): [
        "test_nan_is_never_returned",
        "attacks/test_deepfool.py::test_equals_foolbox_image_by_image",
        "attacks/test_strength.py::test_minimum_norms_of_foolbox",
    ],
    (7, "NaN at eps = 0"): [
        "test_eps_zero_returns_the_image_itself",
        "test_accuracy_at_eps_zero_is_the_clean_one",
    ],
    (8, "L1 without the L1 ball"): [
        "attacks/test_strength.py::test_l1_attacks_beat_scaled_gradients",
        "core/test_norms.py::test_l1_projection_of_images_equals_the_sorted_form",
        "core/test_norms.py::test_nearest_point",
    ],
    (9, "DLR crashes with few classes"): [
        "test_any_number_of_classes_with_survivors",
        "attacks/test_properties.py::test_any_number_of_classes",
    ],
    (10, "results depend on batch mates"): [
        "test_batch_mates_change_nothing",
        "attacks/test_properties.py::test_results_do_not_depend_on_the_batch",
        "attacks/test_properties.py::test_ensembles_do_not_depend_on_the_batch",
    ],
    (11, "iterates that are not scored"): [
        "test_every_point_of_a_run_is_scored",
        "test_every_point_of_a_search_is_scored",
        "test_the_nearest_point_asked_is_the_one_reported",
        "attacks/test_properties.py::test_nearest_image_is_the_one_reported",
        "test_the_last_update_is_scored",
    ],
    (12, "robust accuracy rises with eps"): [
        "test_curves_fall",
        "evaluation/test_evaluate.py::test_an_envelope_stands_on_smaller_budgets",
        "attacks/test_properties.py::test_sweep_equals_separate_runs",
    ],
    (13, "NaN logits count as answers"): [
        "test_nan_logits_are_told_not_counted",
        "test_nan_logits_away_from_the_images_are_told",
        "test_a_single_nan_is_told",
    ],
    (14, "one hopeless image fails the batch"): [
        "test_one_hopeless_image_spoils_nothing",
        "test_one_image_without_a_start_fails_no_other",
    ],
    (15, "modes and buffers changed"): ["test_evaluation_leaves_the_subject_as_it_was"],
    (16, "gradients left in the weights"): [
        "test_evaluation_leaves_the_subject_as_it_was",
        "test_a_float32_model_sees_float32",
    ],
    (17, "global random state changed"): ["test_evaluation_leaves_the_subject_as_it_was"],
    (18, "the growing file written again for each batch"): ["test_blocks_are_written_once"],
    (19, "the range of images is not checked"): [
        "test_the_range_of_images_is_checked",
        "test_files_of_the_wrong_range_are_refused",
    ],
    (20, "broken examples stay in the batch"): [
        "test_every_point_of_a_run_is_scored",
        "test_broken_images_cost_nothing_more",
    ],
    (21, "DeepFool pays for the last image of its batch"): [
        "test_deepfool_pays_for_its_own_steps_only",
        "test_passes_of_an_image_do_not_depend_on_others",
    ],
    (22, "C&W needs many passes for one step"): ["test_cw_asks_once_a_step"],
    (23, "points asked twice, broken images attacked again"): [
        "test_no_point_is_asked_twice",
        "test_restarts_attack_survivors_only",
    ],
    (25, "walks that have ended are asked again"): [
        "test_converged_walks_are_not_asked_again",
        "test_a_walk_with_tiny_steps_rests",
        "test_passes_of_an_image_do_not_depend_on_others",
    ],
    (26, "few steps fail; rounded images are not adversarial"): [
        "test_few_steps_are_no_special_case",
        "test_returned_images_are_misclassified_afresh",
    ],
    (29, "float64 reaches a float32 model"): ["test_a_float32_model_sees_float32"],
}
# Mistakes that cost strength, and the tests in attacks/test_strength.py that would tell of them.
STRENGTH = {
    (1, "APGD in bf16 alone"): [
        "test_rescue_finds_what_bf16_misses",
        "test_bf16_breaks_as_many",
    ],
    (2, "steps that bf16 cannot see"): [
        "test_tiny_distances_on_bright_colours_survive_bf16",
        "test_tiny_budgets_survive_bf16",
        "engine/test_twin_layers.py::test_steps_that_bf16_rounds_away_are_seen",
    ],
    (3, "Square in bf16 alone"): [
        "test_square_sees_small_improvements_in_bf16",
        "test_bf16_breaks_as_many",
        "attacks/test_square.py::test_rows_near_the_boundary_are_asked_again_in_float32",
    ],
    (4, "FAB in bf16 alone"): [
        "test_coarse_bf16_finds_points_as_near",
        "test_bf16_finds_points_as_near",
    ],
    (5, "DeepFool in bf16 alone"): ["test_coarse_bf16_finds_points_as_near"],
    (6, "DDN judged by medians"): [
        "test_coarse_bf16_finds_points_as_near",
        "test_bf16_finds_points_as_near",
    ],
    (7, "C&W too slow for robust networks"): ["test_cw_comes_as_near_as_ddn"],
    (8, "k steps that score k points"): [
        "attacks/test_defects_verdicts.py::test_every_point_of_a_run_is_scored",
        "attacks/test_defects_verdicts.py::test_earlier_successes_are_kept",
    ],
}

GRADIENT = [
    name for name in oracles.attacks() if name.split("_")[0] in ("fgsm", "bim", "mim", "pgd")
]


def test_every_defect_has_its_tests() -> None:
    """The numbers are all there once, and the tests that stand beside them exist."""
    numbers = [number for number, _ in DEFECTS]
    assert numbers == [n for n in range(1, 30) if n not in (24, 27, 28)]
    assert [number for number, _ in STRENGTH] == list(range(1, 9))
    tests = Path(__file__).parents[1]
    here = [file.relative_to(tests) for file in Path(__file__).parent.glob("test_defects_*.py")]
    named = [(name, here) for names in DEFECTS.values() for name in names]
    strength = [Path("attacks/test_strength.py")]
    named += [(name, strength) for names in STRENGTH.values() for name in names]
    for name, unnamed in named:
        file, _, function = name.rpartition("::")
        files = [Path(file)] if file else unnamed
        assert sum(function in functions_of(tests / one) for one in files) == 1, name
        assert function.startswith("test_")


@functools.cache
def functions_of(file: Path) -> set[str]:
    written = ast.parse(file.read_text()).body
    return {part.name for part in written if isinstance(part, ast.FunctionDef)}


def test_all_gradient_attacks_are_here() -> None:
    assert {"fgsm", "fgsm_l2", "bim", "mim", "pgd", "pgd_l2", "pgd_l1"} <= set(GRADIENT)
