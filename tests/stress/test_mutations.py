"""Sixty damaged configs; tests/stress/mutate_configs.py tries a thousand."""

from tests.stress.mutate_configs import KINDS, try_case


def test_damaged_configs_train_or_end_with_one_error(fresh_processes, tmp_path):
    outcomes = [try_case(seed, tmp_path / str(seed), fresh_processes) for seed in range(5000, 5060)]
    assert [printed for _, verdict, printed in outcomes if verdict == "wrong"] == []
    assert {kind for kind, _, _ in outcomes} == set(KINDS)
    assert {verdict for _, verdict, _ in outcomes} == {"trains", "error"}
