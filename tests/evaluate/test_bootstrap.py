"""The bootstrap against resampling written out, patient by patient."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from carzero.evaluate.bootstrap import Resampling, bootstrap, mean_draws, mean_interval, percentile_interval


def written_out(units, resampling):
    """Row numbers of each resample, from the counts of its units."""
    names = np.unique(units)
    for counts in np.concatenate(list(resampling.counts()), axis=1).T:
        yield np.concatenate([np.flatnonzero(units == names[g]) for g in np.repeat(np.arange(len(names)), counts)])


def test_every_resample_draws_as_many_units_as_there_are_and_whole_ones():
    units = np.random.default_rng(0).choice(["a", "bb", "c", "d"], 30)
    resampling = Resampling(units, resamples=150, seed=1)
    counts = np.concatenate(list(resampling.counts()), axis=1)
    weights = np.concatenate(list(resampling.weights()))
    assert counts.shape == (4, 150)
    assert (counts.sum(0) == 4).all()
    assert np.array_equal(weights, counts[resampling.member].T)
    # the same draws again, and in blocks of any size
    assert np.array_equal(counts, np.concatenate(list(resampling.counts(block=7)), axis=1))
    assert not np.array_equal(counts, np.concatenate(list(Resampling(units, resamples=150).counts()), axis=1))


def test_means_equal_written_out_resamples_with_missing_values():
    rng = np.random.default_rng(2)
    units = rng.integers(0, 12, 50)
    values = rng.normal(size=(50, 3))
    values[rng.random((50, 3)) < 0.3] = np.nan
    resampling = Resampling(units, resamples=90, seed=3)
    wanted = np.stack([np.nanmean(values[rows], axis=0) for rows in written_out(units, resampling)])
    got = mean_draws(values, units, resamples=90, seed=3)
    assert np.allclose(got, wanted, rtol=0, atol=1e-12)
    interval = mean_interval(values, units, resamples=90, seed=3)
    assert interval.value == pytest.approx(np.nanmean(values, axis=0).mean(), abs=1e-12)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(wanted.mean(1), [0.025, 0.975])), abs=1e-12)


def test_any_statistic_of_weights():
    rng = np.random.default_rng(4)
    units, values = rng.integers(0, 9, 40), rng.normal(size=40)

    def variance(weights):
        mean = (weights @ values) / weights.sum(1)
        return (weights @ values**2) / weights.sum(1) - mean**2

    got = bootstrap(variance, units, resamples=70, seed=5)
    wanted = [values[rows].var() for rows in written_out(units, Resampling(units, resamples=70, seed=5))]
    assert np.allclose(got, wanted, rtol=0, atol=1e-12)


def test_interval_of_a_mean_agrees_with_scipy():
    values = np.random.default_rng(6).exponential(size=400)
    ours = mean_interval(values, resamples=4000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    # two independent Monte Carlo intervals of 4,000 draws: each end has a standard error of some 0.002
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)


def test_nothing_to_say_is_nan_and_misuse_is_named():
    assert np.isnan(mean_interval([np.nan, np.nan]).value)
    assert np.isnan(percentile_interval(0.5, [np.nan]).low)
    only = mean_interval(np.array([[1.0, np.nan], [0.0, np.nan]]), resamples=20)
    assert only.value == 0.5, "a column without any value is left out"
    with pytest.raises(ValueError, match="as many, got 3 and 2"):
        mean_draws([1.0, 2.0, 3.0], [0, 1])
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        percentile_interval(0.5, [0.5], level=95)
    with pytest.raises(ValueError, match="units must be"):
        Resampling([])


def test_draws_do_not_follow_data_simulated_with_the_same_seed():
    labels = np.random.default_rng(0).random(200) < 0.3
    drawn = np.concatenate(list(Resampling(200, resamples=5, seed=0).weights())) @ labels
    # 60 of 200 are positive; counts drawn from the very numbers that made the labels hold none of them
    assert (drawn > 30).all()
