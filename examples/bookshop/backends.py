"""details, reviews, ratings, and the little database behind the second version of ratings."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from .web import Handler, Request, Response, as_json, fetch, stop_late

DATABASE_PORT = 27017
RATINGS_UNAVAILABLE = "Ratings service is currently unavailable"
_RATINGS = {"Reviewer1": 5, "Reviewer2": 4}
_COLOURS = {"v2": "black", "v3": "red"}
_RATINGS_TIMEOUT = {"v2": 10.0, "v3": 2.5}  # seconds
_DATABASE_TIMEOUT = 5.0
_TEXTS = {
    "Reviewer1": "A door that knows who is knocking. I read it in one evening.",
    "Reviewer2": "Dry in places, like any good moat should be. Still, recommended.",
}

Routes = Mapping[tuple[str, str], Handler]


def details(_version: str) -> Routes:
    """The facts about a book."""

    def book(request: Request) -> Response:
        return _numbered(
            request,
            {
                "author": "A. Warden",
                "year": 1594,
                "type": "paperback",
                "pages": 200,
                "publisher": "PublisherA",
                "language": "English",
                "ISBN-10": "1234567890",
                "ISBN-13": "123-1234567890",
            },
        )

    return {("GET", "/details/"): book}


def reviews(version: str) -> Routes:
    """Two reviews: without stars (v1), with black ones (v2) or red ones (v3)."""
    ratings_url = os.environ.get("RATINGS_URL", "http://ratings:9080")

    def both(request: Request) -> Response:
        entries: list[dict[str, Any]] = [{"reviewer": name, "text": text} for name, text in _TEXTS.items()]
        if version in _COLOURS:
            entries = [
                {**entry, "rating": rating} for entry, rating in zip(entries, rated(request), strict=True)
            ]
        return _numbered(request, {"version": version, "podname": socket.gethostname(), "reviews": entries})

    def rated(request: Request) -> list[dict[str, Any]]:
        try:
            found = fetch(
                f"{ratings_url}/ratings/{request.path.rpartition('/')[2]}",
                request.passed_on(),
                timeout=_RATINGS_TIMEOUT[version],
            )["ratings"]
            return [{"stars": found[name], "color": _COLOURS[version]} for name in _TEXTS]
        except (OSError, KeyError, TypeError) as error:
            sys.stdout.write(f"reviews: no ratings: {error}\n")
            return [{"error": RATINGS_UNAVAILABLE}] * len(_TEXTS)

    return {("GET", "/reviews/"): both}


def ratings(version: str) -> Routes:
    """Stars per reviewer: fixed (v1), or from the database that MONGO_DB_URL names (v2)."""
    place = urlsplit(os.environ.get("MONGO_DB_URL", f"mongodb://mongodb:{DATABASE_PORT}/test"))

    def stars(request: Request) -> Response:
        if version == "v1":
            return _numbered(request, {"ratings": _RATINGS})
        try:
            found = ask_database(place.hostname or "", place.port or DATABASE_PORT, {"get": "ratings"})
        except OSError as error:
            sys.stdout.write(f"ratings: no database: {error}\n")
            return as_json({"error": "could not connect to ratings database"}, 500)
        return _numbered(request, {"ratings": found})

    return {("GET", "/ratings/"): stars}


def ask_database(host: str, port: int, question: dict[str, Any]) -> Any:
    """One question, one answer, each a line of JSON over TCP.

    Raises:
        OSError: no answer, or not JSON.
    """
    with socket.create_connection((host, port), timeout=_DATABASE_TIMEOUT) as connection:
        connection.sendall(json.dumps(question).encode() + b"\n")
        with connection.makefile("rb") as answers:
            line = answers.readline(65_536)
    try:
        return json.loads(line)
    except ValueError as error:
        raise OSError(f"{host}:{port} closed the connection") from error


def serve_database(port: int) -> None:
    """A store of stars on a TCP port: `{"get": "ratings"}`, `{"set": {"Reviewer1": 1}}`.

    It is not MongoDB: it stands where the walkthroughs of service meshes put one, so that a service that
    does not speak HTTP is there to be protected.
    """
    stored, lock = dict(_RATINGS), threading.Lock()

    class Connection(socketserver.StreamRequestHandler):
        timeout = _DATABASE_TIMEOUT

        def handle(self) -> None:
            try:
                question = json.loads(self.rfile.readline(65_536))
                changes = {str(name): int(stars) for name, stars in question.get("set", {}).items()}
            except (ValueError, TypeError, AttributeError, OSError):
                return  # a stranger's bytes: hang up
            with lock:
                stored.update((name, stars) for name, stars in changes.items() if name in _RATINGS)
                self.wfile.write(json.dumps(stored).encode() + b"\n")

    class Listener(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    listener = Listener(("", port), Connection)
    stop_late(listener.shutdown)
    sys.stdout.write(f"database: listening on {listener.server_address[1]}\n")
    listener.serve_forever(poll_interval=0.1)


def _numbered(request: Request, content: Mapping[str, Any]) -> Response:
    number = request.path.rpartition("/")[2]
    if not number.isdecimal() or len(number) > 9:
        return as_json({"error": "please provide numeric product ID"}, 400)
    return as_json({"id": int(number), **content})
