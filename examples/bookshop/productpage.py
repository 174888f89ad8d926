"""The page that people see: the front page, the book, signing in."""

from __future__ import annotations

import contextlib
import html
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from .backends import Routes
from .web import Handler, Request, Response, as_json, fetch

TITLE = "Simple Bookstore App"
BOOK = {"id": 0, "title": "A Field Guide to Gatehouses", "descriptionHtml": "Who may pass, and how to tell."}
_OTHERS = ("details", "reviews", "ratings")
_DETAILS_TIMEOUT, _REVIEWS_TIMEOUT, _REVIEWS_TRIES = 3.0, 3.0, 2  # seconds, seconds, calls
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}")  # it goes into a header
_STYLE = "body{font-family:sans-serif;max-width:50em;margin:2em auto}.black{color:black}.red{color:red}"


@dataclass(frozen=True, slots=True)
class Shop:
    """Where the other services are."""

    details_url: str
    reviews_url: str
    ratings_url: str

    @classmethod
    def from_environment(cls) -> Shop:
        return cls(*(os.environ.get(f"{name.upper()}_URL", f"http://{name}:9080") for name in _OTHERS))

    def details(self, request: Request) -> Any:
        return fetch(f"{self.details_url}/details/0", _headers(request), timeout=_DETAILS_TIMEOUT)

    def reviews(self, request: Request) -> Any:
        for _ in range(_REVIEWS_TRIES - 1):
            with contextlib.suppress(OSError):
                return self._reviews(request)
        return self._reviews(request)

    def ratings(self, request: Request) -> Any:
        return fetch(f"{self.ratings_url}/ratings/0", _headers(request), timeout=_REVIEWS_TIMEOUT)

    def page(self, request: Request) -> Response:
        """The book: what does not answer is said to be missing, the rest is shown."""
        details = _section("details", lambda: _details_html(self.details(request)))
        reviews = _section("reviews", lambda: _reviews_html(self.reviews(request)))
        return _html(f"<h1>{html.escape(str(BOOK['title']))}</h1>{_user_html(request)}{details}{reviews}")

    def _reviews(self, request: Request) -> Any:
        return fetch(f"{self.reviews_url}/reviews/0", _headers(request), timeout=_REVIEWS_TIMEOUT)


def productpage(_version: str) -> Routes:
    """The routes of the front service."""
    shop = Shop.from_environment()
    return {
        ("GET", "/"): front,
        ("GET", "/index.html"): front,
        ("GET", "/productpage"): shop.page,
        ("POST", "/login"): login,
        ("GET", "/logout"): logout,
        ("GET", "/static/style.css"): lambda _: Response(_STYLE, kind="text/css"),
        ("GET", "/api/v1/products"): lambda _: as_json([BOOK]),
        ("GET", "/api/v1/products/0"): _api(shop.details),
        ("GET", "/api/v1/products/0/reviews"): _api(shop.reviews),
        ("GET", "/api/v1/products/0/ratings"): _api(shop.ratings),
    }


def _api(what: Callable[[Request], Any]) -> Handler:
    def call(request: Request) -> Response:
        try:
            return as_json(what(request))
        except OSError as error:
            sys.stdout.write(f"productpage: {error}\n")
            return as_json({"error": "this part of the shop does not answer"}, 503)

    return call


def _headers(request: Request) -> dict[str, str]:
    """For the calls to the other services: with the name of who is signed in, which only the cookie says."""
    passed = {key: value for key, value in request.passed_on().items() if key != "end-user"}
    user = signed_in(request)
    return {**passed, "end-user": user} if user else passed


def front(_request: Request) -> Response:
    """The front page."""
    return _html(f"<h1>{TITLE}</h1><p>One book, four services. <a href='/productpage'>To the book</a></p>")


def login(request: Request) -> Response:
    """Sign in: any name, no password."""
    name = parse_qs(request.body.decode("utf-8", "replace")).get("username", [""])[0]
    if not _USER.fullmatch(name):
        return _html("<p>A name has 1 to 64 letters, digits, spaces and any of . _ @ -</p>", 400)
    cookie = f"session={quote(name)}; Path=/; HttpOnly; SameSite=Lax"
    return Response(status=303, kind="text/html", headers={"location": "/productpage", "set-cookie": cookie})


def logout(_request: Request) -> Response:
    """Sign out."""
    cookie = "session=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0"
    return Response(status=303, kind="text/html", headers={"location": "/productpage", "set-cookie": cookie})


def signed_in(request: Request) -> str:
    """Who is signed in; empty for nobody and for a cookie that is not ours."""
    try:
        cookie = SimpleCookie(request.headers.get("cookie", "")).get("session")
    except CookieError:
        return ""
    name = unquote(cookie.value) if cookie else ""
    return name if _USER.fullmatch(name) else ""


def _section(what: str, render: Callable[[], str]) -> str:
    try:
        return render()
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        sys.stdout.write(f"productpage: no {what}: {error}\n")
        sorry = f"Sorry, product {what} are currently unavailable for this book."
        return f"<section><h2>Error fetching product {what}!</h2><p>{sorry}</p></section>"


def _details_html(details: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd>"
        for key, value in details.items()
        if key != "id"
    )
    return f"<section><h2>Book Details</h2><dl>{rows}</dl></section>"


def _reviews_html(answer: Mapping[str, Any]) -> str:
    entries = "".join(
        f"<blockquote><p>{html.escape(str(review['text']))}</p><cite>{html.escape(str(review['reviewer']))}</cite>"
        f"{_stars_html(review.get('rating'))}</blockquote>"
        for review in answer["reviews"]
    )
    return f"<section><h2>Book Reviews</h2>{entries}</section>"


def _stars_html(rating: Mapping[str, Any] | None) -> str:
    if rating is None:
        return ""
    if "error" in rating:
        return f"<p><i>{html.escape(str(rating['error']))}</i></p>"
    count = max(0, min(5, int(rating["stars"])))
    colour = "red" if rating["color"] == "red" else "black"
    return f"<p class='stars {colour}' title='{count} full stars'>{'★' * count}{'☆' * (5 - count)}</p>"


def _user_html(request: Request) -> str:
    user = signed_in(request)
    if user:
        return f"<p>{html.escape(user)} (<a href='/logout'>sign out</a>)</p>"
    form = "<form method='post' action='/login'><input name='username' placeholder='name' maxlength='64'>"
    return f"{form}<button>Sign in</button></form>"


def _html(body: str, status: int = 200) -> Response:
    head = f"<meta charset='utf-8'><title>{TITLE}</title><link rel='stylesheet' href='/static/style.css'>"
    return Response(
        f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>\n", status, "text/html"
    )
