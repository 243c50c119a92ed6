"""Float or int8: tables whose structure is known, small and gappy histories, and ncnn's devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pytest

from benchmarks.int8_decision import NCNN, Table, load, methods, score, scored
from engine.fleet.precision import Benefit, Explanation, Int8Benefit, Pair, Settings

NETWORKS = ("a", "b", "c", "d", "e")
PLAIN = Settings(scale=100.0, reach=100.0, latencies=False, floor=1e-3)
"""The Gaussian model alone: nothing is compressed, all devices count alike."""
MEAN = np.array([0.1, -0.2, 0.0, 0.3, -0.1])
LOADINGS = np.array([[0.3, 0.3, 0.3, 0.3, 0.3], [0.2, -0.2, 0.1, 0.0, -0.1]])
OWN = 0.05
COVARIANCE = LOADINGS.T @ LOADINGS + OWN**2 * np.eye(5)


def pair(log_speedup: float, float_ms: float = 5.0, error: float = 0.0) -> Pair:
    return Pair(float_ms=float_ms, int8_ms=float_ms / math.exp(log_speedup), error=error)


def row(values: Sequence[float], error: float = 0.0) -> dict[str, Pair]:
    """Return a device's pairs; what is not a number was not measured."""
    return {
        name: pair(value, error=error)
        for name, value in zip(NETWORKS, values, strict=False)
        if not math.isnan(value)
    }


def drawn(count: int, seed: int, missing: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.multivariate_normal(MEAN, COVARIANCE, count)
    values[rng.random(values.shape) < missing] = np.nan
    return values


def history(count: int, seed: int = 0, missing: float = 0.0) -> list[dict[str, Pair]]:
    return [row(values) for values in drawn(count, seed, missing)]


def means(found: Explanation) -> np.ndarray:
    return np.array([found.benefits[name].mean for name in NETWORKS])


def deviations(found: Explanation) -> np.ndarray:
    return np.array([found.benefits[name].deviation for name in NETWORKS])


def conditional(values: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation under the true distribution, by the textbook."""
    at = list(values)
    gain = COVARIANCE[:, at] @ np.linalg.inv(COVARIANCE[np.ix_(at, at)])
    mean = MEAN + gain @ (np.array(list(values.values())) - MEAN[at])
    return mean, np.sqrt(np.diag(COVARIANCE - gain @ COVARIANCE[at]).clip(0))


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_conditional_distribution_of_a_known_table_is_recovered(missing: float) -> None:
    fitted = Int8Benefit(PLAIN).fit(history(400, missing=missing))
    values = {0: 0.5, 1: -0.3}
    found = fitted.given({NETWORKS[j]: pair(value) for j, value in values.items()})
    mean, deviation = conditional(values)
    np.testing.assert_allclose(means(found), mean, atol=0.05)
    np.testing.assert_allclose(deviations(found)[2:], deviation[2:], rtol=0.35)
    prior = [found.benefits[name].prior_mean for name in NETWORKS]
    np.testing.assert_allclose(prior, MEAN, atol=0.06)


def test_any_networks_may_be_the_probes_and_more_of_them_leave_less_doubt() -> None:
    fitted = Int8Benefit().fit(history(60))
    truth = drawn(1, 9)[0]
    doubts = []
    for count in range(6):
        found = fitted.given(row(truth[:count]))
        assert set(found.benefits) == set(NETWORKS)
        assert set(found.probes) == set(NETWORKS[:count])
        doubts.append(found.benefits["e"].deviation)
    assert doubts == sorted(doubts, reverse=True)
    assert doubts[5] < 0.06 < doubts[0]


def test_without_probes_it_is_the_prior_that_speaks() -> None:
    found = Int8Benefit().fit(history(60)).given({})
    for benefit in found.benefits.values():
        assert benefit.mean == pytest.approx(benefit.prior_mean, abs=0.02)
        assert benefit.deviation == pytest.approx(benefit.prior_deviation, rel=0.1)
    assert set(found.likeness) == {1.0}


def test_a_faster_probe_makes_the_others_faster() -> None:
    fitted = Int8Benefit(PLAIN).fit(history(60))
    found = [means(fitted.given({"a": pair(x), "c": pair(x)})) for x in np.linspace(-1, 1, 9)]
    assert (np.diff(found, axis=0) > 0).all()
    stretched = Int8Benefit(Settings(reach=100.0)).fit(history(60))
    found = [means(stretched.given({"a": pair(x), "c": pair(x)})) for x in np.linspace(-3, 3, 9)]
    assert (np.diff(found, axis=0) > 0).all()


def test_a_noisy_probe_says_less_than_the_other_devices() -> None:
    fitted = Int8Benefit().fit(history(60))
    exact, noisy = (fitted.given(row([-0.6, -0.6], error)).benefits for error in (0.0, 5.0))
    assert exact["d"].precision == "float"
    assert noisy["d"].precision == "int8"
    for name in NETWORKS:
        assert noisy[name].mean == pytest.approx(noisy[name].prior_mean, abs=0.1)
        assert exact[name].deviation < noisy[name].deviation


def test_a_single_device_as_history_leaves_the_word_to_the_measurements() -> None:
    fitted = Int8Benefit().fit([row([0.4, 0.1, 0.3])])
    slow, fast = fitted.given(row([-0.5, -0.6])), fitted.given(row([0.5, 0.6]))
    assert slow.benefits["c"].precision == "float"
    assert fast.benefits["c"].precision == "int8"
    assert slow.benefits["a"].mean == pytest.approx(-0.5, abs=0.05)
    assert slow.benefits["c"].deviation > 2 * slow.benefits["a"].deviation


def test_without_any_history_a_network_does_what_the_probes_did() -> None:
    fitted = Int8Benefit().fit([], networks=("a", "b", "mine"))
    found = fitted.given({"a": pair(-0.3), "b": pair(-0.2)})
    assert -0.4 < found.benefits["mine"].mean < -0.15
    assert found.benefits["mine"].prior_mean == 0
    assert found.likeness == ()


def test_a_network_that_no_device_has_run_is_taken_for_an_average_one() -> None:
    fitted = Int8Benefit(PLAIN).fit(history(60), networks=("mine",))
    assert fitted.given({}).benefits["mine"].mean == pytest.approx(float(MEAN.mean()), abs=0.08)
    found = fitted.given(row([0.5, 0.2]))
    assert found.benefits["mine"].precision == "int8"
    assert found.benefits["mine"].deviation > 2 * max(deviations(found))


def test_where_networks_differ_by_more_the_slower_int8_is_compression_decides_better() -> None:
    known, tested = (0.4 * np.sinh(5 * drawn(count, seed)) for count, seed in ((60, 15), (200, 5)))
    right = {}
    for scale in (0.4, 100.0):
        settings = Settings(scale=scale, reach=100.0, latencies=False)
        fitted = Int8Benefit(settings).fit([row(values) for values in known])
        found = np.array([means(fitted.given(row(values[:2]))) for values in tested])
        right[scale] = np.mean((found > 0)[:, 2:] == (tested > 0)[:, 2:])
    assert right[0.4] > 0.9
    assert right[0.4] > right[100.0] + 0.05


def two_kinds() -> list[dict[str, Pair]]:
    """Return devices of two kinds, whose third network does the opposite, and that differ in how
    fast they are in float."""
    rng = np.random.default_rng(4)
    rows = []
    for i in range(40):
        kind, level = i % 2, rng.normal(0, 0.1)
        ms = 3.0 * math.exp(2 * kind + rng.normal(0, 0.1))
        third = 0.4 if kind else -0.4
        rows.append(
            {name: pair(level + own + rng.normal(0, 0.02), float_ms=ms)
             for name, own in (("a", 0.0), ("b", 0.0), ("c", third))}
        )  # fmt: skip
    return rows


def test_float_latencies_tell_kinds_of_device_apart_that_ratios_do_not() -> None:
    fitted = Int8Benefit().fit(two_kinds())
    blind = Int8Benefit(Settings(latencies=False)).fit(two_kinds())
    for ms, precision, sides in ((3.0, "float", 0), (22.0, "int8", 1)):
        probes = {"a": pair(0.0, ms), "b": pair(0.0, ms)}
        found = fitted.given(probes)
        assert found.benefits["c"].precision == precision
        assert found.benefits["c"].deviation < 0.5 * blind.given(probes).benefits["c"].deviation
        alike = [np.mean(found.likeness[kind::2]) for kind in (0, 1)]
        assert int(np.argmax(alike)) == sides


def test_rows_of_one_device_can_share_its_weight() -> None:
    rare, common = row([0.5, 0.5, 0.5]), row([-0.5, -0.5, -0.5])
    many = [rare, *[common] * 9]
    alike = Int8Benefit(PLAIN).fit(many).given({}).benefits["a"].mean
    shared = Int8Benefit(PLAIN).fit(many, weights=[1, *[1 / 9] * 9]).given({}).benefits["a"].mean
    assert alike < -0.3
    assert shared == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("scale", [0.4, 100.0])
def test_mean_deviation_and_probability_are_those_of_the_stretched_variable(scale: float) -> None:
    fitted = Int8Benefit(Settings(scale=scale)).fit(history(10))
    [(mean, deviation, probability)] = fitted._stretched(np.array([0.2]), np.array([[0.09]]))
    draws = np.random.default_rng(0).normal(0.2, 0.3, 1_000_000)
    sample = scale * np.sinh(draws / scale)
    assert mean == pytest.approx(sample.mean(), abs=0.003)
    assert deviation == pytest.approx(sample.std(), rel=0.01)
    assert probability == pytest.approx((sample > 0).mean(), abs=0.002)


def test_int8_runs_where_it_is_expected_to_be_faster_and_more_likely_is() -> None:
    fitted = Int8Benefit().fit(history(30, missing=0.3))
    rows = [fitted.given(row(values[:2])) for values in drawn(40, 3)]
    said = [benefit for found in rows for benefit in found.benefits.values()]
    assert {benefit.precision for benefit in said} == {"float", "int8"}
    for benefit in said:
        assert (benefit.precision == "int8") == (benefit.mean > 0) == (benefit.probability > 0.5)
        assert benefit.speedup == pytest.approx(math.exp(benefit.mean))
    assert Benefit(0.0, 0.1, 0.5, 0.0, 0.1).precision == "float"


def test_the_same_history_gives_the_same_answer_to_the_last_bit() -> None:
    first, second = (Int8Benefit().fit(history(30)).given(row([0.1, 0.2])) for _ in range(2))
    assert first == second


def test_what_cannot_be_learned_or_told_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="no network to learn about"):
        Int8Benefit().fit([])
    with pytest.raises(ValueError, match="fit it to a history"):
        Int8Benefit().given(row([0.1]))
    with pytest.raises(ValueError, match="nothing is known of vgg: measure one of a, b"):
        Int8Benefit().fit([row([0.1, 0.2])]).given({"vgg": pair(0.1)})
    for weights in ([1.0, 2.0], [0.0], [math.nan]):
        with pytest.raises(ValueError, match="one weight, a positive number"):
            Int8Benefit().fit([row([0.1])], weights=weights)
    with pytest.raises(ValueError, match="a positive number of milliseconds, not 0"):
        Pair(float_ms=0.0, int8_ms=1.0)
    with pytest.raises(ValueError, match="a positive number of milliseconds, not nan"):
        Pair(float_ms=1.0, int8_ms=math.nan)
    with pytest.raises(ValueError, match="a standard error is 0 or a positive number, not -1"):
        Pair(float_ms=1.0, int8_ms=1.0, error=-1.0)
    with pytest.raises(ValueError, match="scale must be above 0, it is 0"):
        Settings(scale=0.0)
    with pytest.raises(ValueError, match=r"scale must be at least 0.1, it is 0.01"):
        Settings(scale=0.01)


def test_decisions_are_scored_on_the_networks_that_are_not_probes() -> None:
    milliseconds = np.full((2, 3), 2.0)
    table = Table(("a", "b", "c"), np.array([0, 1]), milliseconds,
                  np.array([[1.0, 1.0, 4.0], [1.0, np.nan, 1.0]]), np.zeros((2, 3)))  # fmt: skip
    cells = scored(table, [(0, 1), (0, 2)])
    # The second device lacks b: it cannot be a probe there, and is not decided on.
    assert cells.tolist() == [
        [[False, False, True], [False, False, False]],
        [[False, True, False], [False, False, False]],
    ]
    right, geometric, arithmetic = score(table, np.full((2, 2, 3), 1.0), cells).shares()
    assert (right, geometric, arithmetic) == pytest.approx((0.5, 1.0, 1.25))


def test_on_real_devices_left_out_it_decides_better_than_simpler_rules() -> None:
    if not NCNN.is_dir():
        pytest.skip(f"no table of ncnn's benchmark at {NCNN}")
    table = load(NCNN)
    assert len(table.device) == 123
    probes = list(combinations(range(len(table.networks)), 2))[::4]
    cells = scored(table, probes)
    found = {
        name: score(table, predicted, cells).shares()[:2]
        for name, predicted in methods(table, probes, []).items()
    }
    ours = found.pop("ours")
    perfect = found.pop("perfect choice")
    assert len(found) == 5
    for name, other in found.items():
        assert (ours > other).all(), name
    assert (ours < perfect).all()
    assert ours[0] > 0.87
    assert ours[1] > 1.14
