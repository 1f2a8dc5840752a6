"""Clips from magnitudes: least error, percentiles, one outlier, and parts that add up to the whole."""

import numpy as np
import pytest
import torch

from bitpress.core.encoding import unsigned
from bitpress.core.errors import UsageError
from bitpress.core.magnitudes import Magnitudes
from bitpress.core.quant import quantize_act
from bitpress.core.ranges import ACT_RANGES, Ranges


def values(count: int = 40000) -> np.ndarray:
    return np.abs(np.random.default_rng(0).normal(size=count)).astype(np.float32)


def seen(*parts: np.ndarray) -> Magnitudes:
    out = Magnitudes()
    for part in parts:
        out.add(torch.from_numpy(part))
    return out


def error(x: np.ndarray, clip: float, bits: int) -> float:
    e = unsigned(bits)
    return float(np.square(quantize_act(x, clip, e) * (clip / e.hi) - x).mean())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_mse_has_the_least_error(bits):
    x = values()
    clip = seen(x).clip(unsigned(bits), Ranges())
    assert error(x, clip, bits) <= 1.01 * min(error(x, float(x.max()) * f, bits) for f in np.linspace(0.1, 1, 40))


def test_batches_count_as_one():
    x = values(1000)
    whole, parts = seen(x), seen(x[:300].reshape(3, 100), x[300:])
    assert np.array_equal(whole.counts, parts.counts) and (whole.seen, whole.top) == (parts.seen, parts.top)


@pytest.mark.parametrize("percentile", [50, 90, 99, 99.9, 100])
def test_percentile_is_that_of_all_values_zeros_too(percentile):
    x = np.concatenate([values(5000), np.zeros(5000, np.float32)])
    clip = seen(x).clip(unsigned(8), Ranges("percentile", percentile))
    want = np.quantile(x, percentile / 100, method="inverted_cdf")
    assert want <= clip <= max(want * (1 + 2**-8), x[x > 0].min() * (1 + 2**-8))  # a bin is 0.2 % wide


def test_an_outlier_rules_the_maximum_alone():
    x = values()
    planted = np.concatenate([x, np.float32([5000])])
    clips = {by: seen(planted).clip(unsigned(4), Ranges(by)) for by in ACT_RANGES}
    assert clips["max"] == 5000
    assert clips["percentile"] == pytest.approx(np.quantile(x, 0.9999), rel=0.1)
    # squared error weighs one value of 5000 against 40,000 of 1: less is cut off than by percentiles
    best = min((error(planted, 5000 * f, 4), f) for f in np.geomspace(1e-4, 1, 300))
    assert error(planted, clips["mse"], 4) <= 1.02 * best[0]
    assert error(x, clips["percentile"], 4) < error(x, clips["max"], 4) / 50


def test_an_outlier_among_many_is_cut_by_least_error_too():
    x = values(400000)
    planted = np.concatenate([x, np.float32([60])])
    clip = seen(planted).clip(unsigned(4), Ranges())
    assert clip < 4 and error(x, clip, 4) < error(x, 60.0, 4) / 20


def test_nothing_but_zeros_has_a_clip_of_one():
    for by in ACT_RANGES:
        assert seen(np.zeros(16, np.float32)).clip(unsigned(4), Ranges(by)) == 1.0


def test_what_no_terms_can_be():
    for wrong in ({"act": "mean"}, {"weight": "percentile"}, {"equalize": "yes"}):
        with pytest.raises(UsageError, match="is none of"):
            Ranges(**wrong)
    for percentile in (49, 101):
        with pytest.raises(UsageError, match="from 50 to 100"):
            Ranges(percentile=percentile)
