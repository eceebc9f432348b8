"""The facts that the compiled module tells: how launches are cut, and what was built."""

from __future__ import annotations

import itertools

import pytest
from vocab_inputs import ALL_FEATURES

from bgkd_megatron import ops
from bgkd_megatron.statistics import Feature

H100_SMS = 132
BYTES_PER_STATISTIC = 4 * len(ops.stat_names(ALL_FEATURES))


def test_cpu_tasks_cover_the_tokens_and_bytes_are_those_of_the_logits() -> None:
    plan = ops.launch_plan(100, 50_000, 2, Feature.TEACHER)
    rows = len(ops.stat_names(Feature.TEACHER))
    assert plan["tokens_per_task"] * plan["num_tasks"] >= 100
    assert plan["forward_bytes"] == 100 * (2 * 50_000 * 2 + 4 * rows)
    assert plan["backward_bytes"] == 100 * (3 * 50_000 * 2 + 8 * rows)


@pytest.mark.parametrize("element_size", [2, 4])
def test_cuda_parts_cut_every_row_whole(element_size: int) -> None:
    """Tokens: none, too few to fill the device, just enough, many. Columns: none, less than one
    block takes, one more than blocks take, real vocabularies over 1 and 8 ranks, one too large."""
    tokens = (0, 1, 7, 3 * H100_SMS, 8192)
    columns = (0, 1, 511, 4097, 18_992, 151_936, 1 << 24)
    for num_tokens, num_columns in itertools.product(tokens, columns):
        for num_sms in (1, H100_SMS):
            plan = ops.cuda_launch_plan(
                num_tokens, num_columns, element_size, ALL_FEATURES, num_sms
            )
            threads, parts, width = (plan[k] for k in ("threads", "parts", "columns_per_part"))
            assert threads % 32 == 0
            assert 32 <= threads <= 256
            assert 1 <= parts <= 65_535  # the grid's second dimension
            assert (parts - 1) * width < max(num_columns, 1) <= parts * width
            assert width * element_size % (16 * threads) == 0  # a part begins where a vector may
            expected = 0 if parts == 1 else parts * num_tokens * BYTES_PER_STATISTIC
            assert plan["workspace_bytes"] == expected


def test_cuda_rows_are_cut_only_where_they_do_not_fill_the_device() -> None:
    def parts(num_tokens: int) -> int:
        return ops.cuda_launch_plan(num_tokens, 151_936, 2, ALL_FEATURES, H100_SMS)["parts"]

    assert parts(8192) == parts(3 * H100_SMS) == 1
    assert parts(16) > parts(64) > 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((-1, 8, 4, 0), "sizes must be at least 0"),
        ((8, -1, 4, 0), "sizes must be at least 0"),
        ((8, 8, 8, 0), "element_size 2 or 4 bytes"),
        ((8, 8, 4, Feature.FORWARD_KL), "statistics of a teacher without TEACHER"),
    ],
)
def test_plans_refuse_sizes_that_are_none(
    sizes: tuple[int, int, int, Feature], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ops.launch_plan(*sizes)
    with pytest.raises(ValueError, match=message):
        ops.cuda_launch_plan(*sizes, num_sms=H100_SMS)


def test_cuda_plan_needs_a_multiprocessor() -> None:
    with pytest.raises(ValueError, match="num_sms must be at least 1"):
        ops.cuda_launch_plan(8, 8, 4, Feature(0), num_sms=0)


def test_build_info_names_cuda_exactly_when_it_is_built() -> None:
    info = ops.build_info()
    has_cuda = "cuda" in info["devices"]
    assert (info["cuda"] is not None) == has_cuda
    assert (info["cuda_architectures"] is not None) == has_cuda
    assert info["devices"][0] == "cpu"
    assert tuple(info["devices"]) == ops.DEVICES


def test_two_chunks_of_tokens_fit_the_cache() -> None:
    cache = 50 << 20
    for num_columns, element_size in itertools.product((1, 18_992, 151_936), (2, 4)):
        tokens = ops.tokens_in_cache(num_columns, element_size, cache)
        chunk = 2 * num_columns * element_size * tokens
        assert 0.7 * cache < 2 * chunk <= 0.75 * cache
    assert ops.tokens_in_cache(151_936, 2, 0) == 1
    with pytest.raises(ValueError, match="tokens_in_cache: sizes must be at least 0"):
        ops.tokens_in_cache(8, 2, -1)
