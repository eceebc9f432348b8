"""The checks of ranks/, reported one by one."""

from __future__ import annotations

import pytest

ALWAYS = [
    "fresh_weights_do_not_depend_on_the_layout",
    "logits_do_not_depend_on_the_layout",
    "padding_is_zero",
    "teacher_is_frozen",
    "hard_loss_is_megatrons_cross_entropy",
    "nothing_to_learn_gives_zero",
    "labels_are_drawn_anew_for_each_microbatch",
    "dense_formula_hard_only",
    "dense_formula_entropy",
    "dense_formula_confidence_reverse_kl",
    "dense_formula_tsallis_at_temperature_2",
    "dense_formula_curriculum_on_teacher_argmax",
    "dense_formula_jensen_shannon_weighted_by_the_label",
    "dense_formula_alpha_beta",
    "dense_formula_risk_guided",
]
CHECKS = {
    1: [
        "valid_set_holds_every_token_once",
        "labels_follow_the_loss_mask",
        "restart_continues_the_order",
        "new_data_under_an_old_name",
        "blend_follows_weights",
        "bad_datasets_are_refused",
        "damaged_dataset_is_told",
        *ALWAYS,
        "edited_architecture_is_refused",
        "run_learns",
        "resume_is_bitwise",
        "evaluation_of_a_checkpoint",
        "finished_run_is_evaluated_again",
        "not_finite_is_an_error",
        "not_finite_is_skipped",
        "batches_without_a_target",
        "bf16_run",
        "fresh_student_without_teacher",
        "hard_only_run_is_measured_against_the_teacher",
        "run_of_experts",
        "run_of_heads",
        "run_of_capped",
        "run_of_tied",
        "run_of_coupled",
    ],
    2: [
        "ranks_share_a_batch",
        *ALWAYS,
        "sequence_parallel_teacher_states",
        "run_on_tp_2",
        "resume_on_another_layout",
        "run_on_dp_2",
        "run_on_sequence_parallel",
        "fresh_experts_are_no_copies",
        "run_on_pp2",
        "run_on_pp2_vp2",
        "run_on_cp2",
        "run_on_dp2_sharded",
        "run_on_dp2_overlap",
        "run_of_experts_ep2",
        "run_of_experts_tp2_sp1",
        "run_of_heads_tp2",
        "run_of_heads_pp2",
        "run_of_capped_tp2",
        "run_of_tied_pp2",
        "run_of_coupled_cp2",
        "run_of_ahead_pp2",
        "run_of_uneven_pp2",
        "resume_of_run_1_then_pp2",
        "resume_of_pp2_then_tp2",
        "resume_of_pp2_then_pp2_vp2",
        "resume_of_pp2_vp2_then_pp2_vp2",
        "resume_of_cp2_then_cp2",
        "resume_of_dp2_sharded_then_do1_pp2",
        "resume_of_dp2_overlap_then_do1_o1",
        "sigterm_then_resume_is_bitwise",
        "sigterm_in_an_evaluation",
        "full_disk_is_an_error",
        "damaged_sample_index_is_told",
        "sample_index_that_cannot_be_written_is_told",
        "damaged_weights_are_refused",
        "damaged_checkpoint_is_refused",
    ],
    3: [
        *ALWAYS,
        "sequence_parallel_teacher_states",
        "run_on_tp_3",
        "resume_on_another_layout",
    ],
    4: [
        "run_on_tp2_sp_pp2",
        "run_on_tp2_sp_cp2",
        "run_on_pp2_vp2_dp2",
        "run_on_pp2_cp2",
        "run_on_pp4",
        "run_on_tp2_dp2",
        "run_of_experts_ep2_pp2_do1",
        "run_of_experts_ep2_cp2",
        "run_of_coupled_cp2_tp2",
        "run_of_ahead_pp2_vp2_do1_o1",
        "resume_of_pp2_vp2_dp2_then_tp2_sp1_do1_o1",
        "resume_of_pp2_vp2_dp2_then_pp2_vp2_do1_o1",
    ],
}


@pytest.mark.parametrize(
    ("processes", "name"), [(n, name) for n, names in CHECKS.items() for name in names]
)
def test_check(run_checks, processes: int, name: str) -> None:
    error = run_checks(processes)[name]
    assert not error, error


@pytest.mark.parametrize("processes", CHECKS)
def test_no_check_is_forgotten(run_checks, processes: int) -> None:
    assert sorted(run_checks(processes)) == sorted(CHECKS[processes])
