"""What every test of a launcher asserts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .bounded import Bounded, finite
from .contract import ALL_FEATURES, Feature, LogitType
from .launchers import Outcome
from .rows import Pattern


def assert_clean(outcome: Outcome) -> None:
    """Nothing that a GPU would not forgive, and every element of the result written."""
    assert outcome.device.findings == [], outcome.device.findings[0]
    assert outcome.code == 0
    assert np.all(outcome.written)


def assert_vectors(outcome: Outcome, size: int) -> None:
    """Nearly all of `size` bytes of aligned rows are read 16 bytes at a time."""
    for launch in outcome.launches:
        requests = launch.report.profile.traffic["load global"].requests
        # besides: statistics, and the columns of labels and maxima
        assert requests < 1.5 * size / (16 * 32) + 100, f"{requests} requests for {size} bytes"


def assert_within(
    bounded: Bounded, got: np.ndarray, what: str, patterns: Sequence[Pattern]
) -> None:
    """got: [N] or [N, V]. Names the row that is off most."""
    excess = bounded.excess(got)
    if excess.size == 0 or excess.max() <= 1:
        return
    worst = np.unravel_index(excess.argmax(), excess.shape)
    raise AssertionError(
        f"{what}, row {worst[0]} ({patterns[worst[0]].__name__}), at {worst[1:]}: {got[worst]}"
        f" for {bounded.value[worst]}, {excess[worst]:.3g} times what may be lost"
    )


def assert_stats(
    expected: dict[str, Bounded], outcome: Outcome, patterns: Sequence[Pattern],
    features: Feature = ALL_FEATURES,
) -> None:  # fmt: skip
    for name, got in outcome.stats(features).items():
        assert_within(expected[name], got, name, patterns)


def assert_gradient(
    expected: Bounded, outcome: Outcome, dtype: LogitType, patterns: Sequence[Pattern]
) -> None:
    """Rounded once to the logits' type; padding columns are 0."""
    got, columns = dtype.decode(outcome.result), expected.value.shape[1]
    size = np.abs(finite(expected.value)) + finite(np.asarray(expected.error))
    rounded = Bounded(expected.value, expected.error + dtype.rounding(size))
    assert_within(rounded, got[:, :columns], "gradient", patterns)
    assert not got[:, columns:].any(), "padding columns are not 0"
