"""Several credentials: all must be good and agree (F-55); none is refused like a bad one (F-40)."""

from __future__ import annotations

import datetime as dt

import pytest

from ca.authn import LATER, NO_KEYS_TEXT, AuthnCode, AuthnError, Caller, Chain, Method, Presented
from mesh.errors import Category
from mesh.spiffe import SpiffeId
from tests.fakes.ca_factory import NOW, TRUST_DOMAIN

WEB = SpiffeId(TRUST_DOMAIN, "/ns/demo/sa/web")
ADMIN = SpiffeId(TRUST_DOMAIN, "/ns/demo/sa/admin")
HOUR = dt.timedelta(hours=1)


class Says:
    """An authenticator with one answer."""

    def __init__(self, answer: Caller | AuthnError | None, method: Method = Method.TOKEN) -> None:
        self.answer = answer
        self.method = method

    def authenticate(self, presented: Presented, now: dt.datetime) -> Caller | None:
        if isinstance(self.answer, AuthnError):
            raise self.answer
        return self.answer


TOKEN = Caller(
    spiffe_id=WEB, method=Method.TOKEN, expires=NOW + HOUR, pod_name="web-1", pod_uid="u1", node_name="n1"
)
CERTIFICATE = Caller(spiffe_id=WEB, method=Method.CERTIFICATE, expires=NOW + 2 * HOUR)
BAD = AuthnError(AuthnCode.TOKEN_EXPIRED, "exp is long ago")


@pytest.mark.parametrize("order", [(TOKEN, CERTIFICATE), (CERTIFICATE, TOKEN)], ids=["token first", "last"])
def test_two_that_agree_are_one_caller(order: tuple[Caller, Caller]) -> None:
    caller = Chain([Says(c) for c in order]).authenticate(Presented(), NOW)
    assert (caller.method, caller.pod_uid, caller.expires) == (Method.BOTH, "u1", NOW + HOUR)


def test_one_is_enough() -> None:
    assert Chain([Says(None), Says(CERTIFICATE)]).authenticate(Presented(), NOW) is CERTIFICATE


def test_none_is_refused() -> None:
    with pytest.raises(AuthnError, match="not authenticated") as error:
        Chain([Says(None)]).authenticate(Presented(), NOW)
    assert error.value.code is AuthnCode.NO_CREDENTIAL


def test_f55_two_that_disagree_are_refused() -> None:
    other = Caller(spiffe_id=ADMIN, method=Method.CERTIFICATE, expires=NOW)
    with pytest.raises(AuthnError) as error:
        Chain([Says(TOKEN), Says(other)]).authenticate(Presented(), NOW)
    assert error.value.code is AuthnCode.MISMATCH
    assert "/sa/web" in error.value.private
    assert "/sa/admin" in error.value.private


@pytest.mark.parametrize("order", [(CERTIFICATE, BAD), (BAD, CERTIFICATE)], ids=["good first", "bad first"])
def test_a_good_credential_does_not_hide_a_bad_one(order: tuple[Caller | AuthnError, ...]) -> None:
    with pytest.raises(AuthnError) as error:
        Chain([Says(c) for c in order]).authenticate(Presented(), NOW)
    assert error.value.code is AuthnCode.TOKEN_EXPIRED


@pytest.mark.parametrize("code", AuthnCode)
def test_all_reasons_look_the_same_to_the_caller(code: AuthnCode) -> None:
    error = AuthnError(code, "the reason")
    if code in LATER:
        assert (error.public, error.category) == (NO_KEYS_TEXT, Category.UNAVAILABLE)
    else:
        assert error.public == AuthnError(AuthnCode.NO_CREDENTIAL, "x").public
        assert error.category is Category.UNAUTHENTICATED
    assert error.private == "the reason"


def test_facts_leave_out_what_is_not_known() -> None:
    assert TOKEN.facts()["pod"] == "web-1"
    assert set(CERTIFICATE.facts()) == {"identity", "method", "proved_until"}


def test_credentials_are_not_in_a_repr() -> None:
    assert "secret" not in repr(Presented(authorization=["Bearer secret"], certificates=[b"secret"]))
