"""What breaks optimizers in the field: one line for each pitfall, and the tests that show that we stay out of it.

``pytest --collect-only -q tests/test_pitfalls.py`` reads as the list. A test that vanishes, or is skipped, fails here.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

EVERY_OPTIMIZER = {
    "run the closure first, once, with grad enabled": """
        test_gradients::test_the_closure_runs_first_once_and_with_grad_enabled
        test_gradients::test_a_closure_that_raises_leaves_everything_as_it_was
        integrations/test_lightning_module::test_fit_is_the_plain_loop""",
    "give the base no closure, unless it evaluates it again itself": """
        test_wrapper::test_a_base_that_initialises_lazily_where_its_state_is_empty_keeps_working
        bases/test_line_search::test_every_evaluation_within_a_step_is_of_one_function_with_its_true_gradient
        bases/test_sharpness::test_e_around_sam_shifts_both_gradients_of_a_step_by_what_the_first_says""",
    "leave p.grad the same tensor with the same values": """
        test_gradients::test_p_grad_is_the_same_tensor_with_the_same_values_after_the_step
        test_gradients::test_p_grad_is_restored_when_the_base_raises_and_the_ema_has_not_moved
        bases/test_every_base::test_heavyball_may_consume_the_gradient_and_the_caller_has_it_back""",
    "keep no alias of p.grad, whose buffer may be used again": """
        test_gradients::test_no_state_aliases_a_gradient_so_that_its_buffer_may_be_reused
        bases/test_compositions::test_an_average_of_gradients_in_place_is_not_seen_by_the_state_of_e""",
    "hold no state before the first step": """
        test_lifecycle::test_the_constructor_holds_no_state
        test_lifecycle::test_parameters_may_be_swapped_after_construction""",
    "initialise every parameter in the first step, or when asked to": """
        test_lifecycle::test_init_state_allocates_for_every_parameter_that_requires_grad_as_the_first_step_does
        test_wrapper::test_init_state_makes_room_for_a_checkpoint_and_changes_nothing_else
        test_wrapper::test_init_state_leaves_a_trained_state_as_it_is""",
    "have no first-step flags: a zero-gradient step at lr 0 changes nothing but the count": """
        test_lifecycle::test_a_zero_gradient_step_at_lr_zero_changes_nothing_but_the_count
        test_lifecycle::test_torchs_checkpoint_loader_initialises_the_state_and_changes_nothing_else""",
    "keep the dtype of its state through load_state_dict": """
        test_precision::test_a_configured_state_dtype_is_kept_through_load
        test_precision::test_a_wide_state_dtype_is_kept_through_load
        bases/test_wrappers::test_in_bfloat16_the_buffer_comes_back_unrounded_and_training_goes_on_bit_for_bit""",
    "survive add_param_group, the defaults of the base included": """
        test_groups::test_an_added_group_starts_like_an_optimizer_of_its_own_with_the_defaults_filled_in
        test_capabilities::test_bad_options_of_an_added_group_are_refused_and_nothing_is_added""",
    "survive every LR scheduler, also after a load": """
        integrations/test_schedules::test_a_scheduler_drives_ours_as_it_drives_adamw_and_the_steps_follow
        integrations/test_schedules::test_the_table_has_every_scheduler_of_torch
        test_resume::test_a_scheduler_keeps_working_after_load""",
    "survive deepcopy and pickle": """
        test_resume::test_a_copy_goes_on_like_the_original_and_apart_from_it
        test_resume::test_a_class_made_by_e_of_survives_pickle_and_deepcopy_without_an_importable_name
        integrations/test_checkpoints_on_disk::test_a_copy_of_model_optimizer_and_scheduler_is_a_loop_of_its_own""",
    "survive hooks around the step": """
        test_lifecycle::test_hooks_run_around_the_step_and_around_saving_and_loading""",
    "survive zero_grad of either kind": """
        test_gradients::test_zero_grad_does_what_the_base_does""",
    "survive named parameters": """
        test_lifecycle::test_named_parameters_are_taken_and_their_names_kept
        test_torchs_own_checks::test_a_state_dict_with_names_loads_without_and_the_other_way_round""",
    "survive frozen parameters and empty groups": """
        test_lifecycle::test_frozen_parameters_and_empty_groups_take_part_in_nothing
        test_lifecycle::test_a_parameter_that_is_frozen_and_thawed_goes_on_where_it_stood
        test_torchs_own_checks::test_empty_parameters_take_part_in_nothing""",
    "survive gradients that are None now and appear later": """
        test_lifecycle::test_a_gradient_that_appears_later_starts_a_step_count_of_its_own
        test_lifecycle::test_a_parameter_whose_gradient_is_none_for_a_while_stands_still""",
    "survive tied weights": """
        test_lifecycle::test_tied_weights_take_one_step
        test_param_groups::test_a_tied_embedding_appears_once""",
    "work with GradScaler, also around a fused base": """
        test_grad_scaler::test_a_skipped_step_changes_nothing
        test_grad_scaler::test_a_step_that_is_not_skipped_is_the_unscaled_step
        integrations/test_plain_loop::test_a_batch_that_overflows_is_as_if_it_had_never_been_seen_but_for_the_scale""",
    "let no non-finite gradient into a moving average, and count what it skips": """
        test_nonfinite::test_a_skipped_step_changes_nothing_but_the_counter
        test_nonfinite::test_one_nan_among_a_thousand_steps_leaves_no_trace
        test_nonfinite::test_around_a_fused_base_a_skipped_step_leaves_no_trace""",
    "judge gradients on the device, without reading": """
        integrations/test_capturable_step::test_a_capturable_step_reads_nothing
        integrations/test_capturable_step::test_the_kernels_are_the_same_for_finite_and_nonfinite_gradients
        integrations/test_capturable_step::test_e_around_a_fused_base_skips_without_reading
        kernels/test_nobody_waits::test_e_around_a_fused_adam_is_one_launch_for_a_group_and_dtype_and_nobody_waits""",
    "judge gradients alike on every rank": """
        ranks/test_steps::test_six_steps_are_those_of_one_process""",
    "compute in float32 at least": """
        test_precision::test_a_step_in_half_precision_is_the_float32_step_rounded_once
        test_precision::test_an_eps_too_small_for_half_precision_still_counts
        test_precision::test_what_the_base_sees_is_computed_in_float32_and_rounded_once
        test_backends::test_narrow_parameters_are_updated_in_float32_by_all""",
    "keep small updates of bfloat16 by one stochastic rounding": """
        test_rounding::test_rounding_is_to_the_two_neighbours_and_unbiased
        test_rounding::test_small_updates_survive_on_average_where_rounding_to_nearest_loses_them""",
    "refuse sparse gradients": """
        test_gradients::test_sparse_gradients_are_refused_before_anything_has_changed""",
    "refuse bad hyperparameters by name, value and range": """
        test_capabilities::test_bad_arguments_are_refused_with_their_name_value_and_range
        test_hyperparameters::test_alto_builds_or_names_the_argument
        integrations/test_schedules::test_a_schedule_that_leaves_the_range_of_alpha_is_told_before_anything_has_changed
        integrations/test_schedules::test_a_scheduler_that_cycles_momentum_cycles_that_of_the_first_moment_and_not_e""",
    "ignore no option": """
        test_capabilities::test_every_option_has_its_effect_and_no_other
        test_capabilities::test_the_table_covers_every_argument_of_the_constructor""",
    "take complex parameters as pairs of real ones": """
        test_capabilities::test_complex_parameters_are_pairs_of_real_ones
        test_torchs_own_checks::test_complex_parameters_are_real_ones_seen_in_pairs""",
}

WRAPPERS = {
    "be a torch optimizer that shares groups, state and defaults, before and after a load": """
        test_wrapper::test_e_is_an_optimizer_that_shares_groups_state_and_defaults_before_and_after_load
        test_wrapper::test_groups_state_and_defaults_set_on_e_are_set_on_the_base
        integrations/test_accelerate_loop::test_the_prepared_loop_is_the_plain_loop_scheduler_included""",
    "save one flat state dict of the base's keys and its own": """
        test_wrapper::test_the_state_dict_is_flat_and_the_bases_own_plus_four_names
        test_wrapper::test_the_base_alone_goes_on_from_the_state_of_e""",
    "load through torch.distributed.checkpoint": """
        test_wrapper::test_torchs_distributed_checkpoint_saves_and_loads_the_state
        ranks/test_checkpoints_on_ranks::test_training_goes_on_as_if_it_had_not_stopped""",
    "not break a base that initialises where its state is empty": """
        test_wrapper::test_a_base_that_initialises_lazily_where_its_state_is_empty_keeps_working
        bases/test_every_base::test_e_around_the_base_is_the_base_fed_with_the_papers_gradient""",
    "have a class form with arguments out of JSON": """
        test_wrapper::test_json_able_arguments_build_the_optimizer
        test_wrapper::test_the_signature_is_what_the_constructor_takes
        integrations/test_trainer_of_transformers::test_the_optimizer_that_was_asked_for_is_stepped_and_resumed""",
}


@functools.cache
def running_tests(path: Path) -> set[str]:
    """The test functions of a file, less those that are marked to be skipped."""
    functions = (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef))
    return {f.name for f in functions if not any("mark.skip" in ast.unparse(mark) for mark in f.decorator_list)}


def check(tests: str) -> None:
    for path, name in (test.split("::") for test in tests.split()):
        assert name in running_tests(TESTS / f"{path}.py"), f"{path}.py has no test {name} that runs"


@pytest.mark.parametrize("must", EVERY_OPTIMIZER)
def test_every_optimizer_must(must):
    check(EVERY_OPTIMIZER[must])


@pytest.mark.parametrize("must", WRAPPERS)
def test_a_wrapper_must(must):
    check(WRAPPERS[must])
