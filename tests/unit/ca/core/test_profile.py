"""Lifetimes and bounds: rows F-18 to F-21."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.core.profile import Excess, LifetimeError, Profile, ProfileCode, ProfileError

MINUTE = dt.timedelta(minutes=1)
HOUR = dt.timedelta(hours=1)
INT64_MAX = (1 << 63) - 1


def test_defaults_are_the_agreed_ones():
    p = Profile()
    assert (p.default_lifetime, p.max_lifetime, p.min_lifetime) == (24 * HOUR, 48 * HOUR, 5 * MINUTE)
    assert p.backdate == 2 * MINUTE
    assert p.excess is Excess.REFUSE
    assert {p.allow_p521, p.allow_ed25519, p.ignore_subject, p.allow_short_lifetimes} == {False}


@pytest.mark.parametrize(
    ("seconds", "lifetime"),
    [
        pytest.param(0, 24 * HOUR, id="F-18-zero-is-the-default"),
        pytest.param(300, 5 * MINUTE, id="minimum"),
        pytest.param(3600, HOUR, id="an-hour"),
        pytest.param(48 * 3600, 48 * HOUR, id="maximum"),
    ],
)
def test_granted(seconds, lifetime):
    assert Profile().lifetime(seconds) == lifetime


@pytest.mark.parametrize(
    ("seconds", "code", "words"),
    [
        pytest.param(-1, ProfileCode.TTL_NEGATIVE, "is negative; ask for 0", id="F-19-negative"),
        pytest.param(-(1 << 63), ProfileCode.TTL_NEGATIVE, "is negative", id="F-19-int64-min"),
        pytest.param(INT64_MAX, ProfileCode.TTL_TOO_LONG, "maximum of 172800 s", id="F-19-int64-max"),
        pytest.param(48 * 3600 + 1, ProfileCode.TTL_TOO_LONG, "ask for less", id="F-20-over-the-maximum"),
        pytest.param(1, ProfileCode.TTL_TOO_SHORT, "minimum of 300 s", id="F-21-one-second"),
        pytest.param(299, ProfileCode.TTL_TOO_SHORT, "ask for more", id="F-21-under-the-minimum"),
    ],
)
def test_refused(seconds, code, words):
    with pytest.raises(LifetimeError) as e:
        Profile().lifetime(seconds)
    assert e.value.code is code
    assert words in e.value.public


@pytest.mark.parametrize("seconds", [48 * 3600 + 1, INT64_MAX])
def test_f20_cap_mode_grants_the_maximum(seconds):
    assert Profile(excess=Excess.CAP).lifetime(seconds) == 48 * HOUR


@settings(deadline=None)
@given(st.integers(-(1 << 80), 1 << 80), st.sampled_from(Excess))
def test_law_any_integer_gives_a_lifetime_within_bounds_or_lifetime_error(seconds, excess):
    p = Profile(excess=excess)
    try:
        granted = p.lifetime(seconds)
    except LifetimeError:
        assert not 300 <= seconds <= 48 * 3600
    else:
        assert p.min_lifetime <= granted <= p.max_lifetime
        assert seconds == 0 or granted.total_seconds() <= seconds


def test_short_lifetimes_need_the_option():
    ten = dt.timedelta(seconds=10)
    p = Profile(min_lifetime=ten, default_lifetime=ten, backdate=dt.timedelta(0), allow_short_lifetimes=True)
    assert p.lifetime(0) == ten
    with pytest.raises(ProfileError, match="demonstrations: allow_short_lifetimes") as e:
        Profile(min_lifetime=ten)
    assert e.value.code is ProfileCode.BOUNDS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"min_lifetime": MINUTE}, "min_lifetime is 60 s; allowed is at least 300 s", id="min"),
        pytest.param(
            {"min_lifetime": dt.timedelta(seconds=9), "allow_short_lifetimes": True},
            "at least 10 s",
            id="min-short",
        ),
        pytest.param({"max_lifetime": 49 * HOUR}, "at most 172800 s", id="max"),
        pytest.param(
            {"default_lifetime": MINUTE}, "min_lifetime 300 s to max_lifetime", id="default-under-min"
        ),
        pytest.param({"max_lifetime": HOUR}, "default_lifetime is 86400 s", id="default-over-max"),
        pytest.param(
            {"backdate": -MINUTE}, "backdate is -60 s; allowed is 0 s to 600 s", id="backdate-negative"
        ),
        pytest.param({"backdate": 11 * MINUTE}, "backdate is 660 s", id="backdate-long"),
    ],
)
def test_bounds(change, words):
    with pytest.raises(ProfileError) as e:
        Profile(**change)
    assert e.value.code is ProfileCode.BOUNDS
    assert words in e.value.public
