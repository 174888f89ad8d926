"""The bookshop by itself, as processes on loopback: BI-03 to BI-09."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

Start = Callable[..., "Service"]


@dataclass
class Service:
    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def start_one(*words: str, **urls: str) -> Service:
        process = subprocess.Popen(
            [sys.executable, "-m", "bookshop", *words, "--port", "0"],
            cwd=EXAMPLES,
            env={**os.environ, "LINGER_SECONDS": "0", **urls},
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout
        listening = re.search(r"listening on (\d+)", process.stdout.readline())
        assert listening
        return Service(process, int(listening[1]))

    yield start_one
    for process in running:
        process.terminate()
    for process in running:
        assert process.wait(10) == 0
        assert process.stdout
        process.stdout.close()


def get(url: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(
        url, headers={key.replace("_", "-"): value for key, value in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def shop(start: Start, version: str, *, ratings: str = "") -> str:
    """The URL of a productpage with everything behind it; `ratings`: another address of ratings."""
    ratings_url = ratings or start("ratings").url
    reviews = start("reviews", "--version", version, RATINGS_URL=ratings_url)
    details = start("details")
    page = start("productpage", DETAILS_URL=details.url, REVIEWS_URL=reviews.url, RATINGS_URL=ratings_url)
    return page.url


@pytest.mark.parametrize(
    ("version", "stars", "colour"),
    [("v1", 0, ""), ("v2", 2, "black"), ("v3", 2, "red")],
    ids=["v1", "v2", "v3"],
)
def test_stars_per_version(start: Start, version: str, stars: int, colour: str) -> None:
    """BI-04: `full stars` is there twice per page with stars."""
    status, page = get(f"{shop(start, version)}/productpage")
    assert status == 200
    assert page.count("full stars") == stars
    assert page.count(f"class='stars {colour}'") == (stars if colour else 0)
    assert "<title>Simple Bookstore App</title>" in page
    assert "Book Details" in page
    assert "Book Reviews" in page


def test_front_page_and_api(start: Start) -> None:
    """BI-05."""
    url = shop(start, "v2")
    assert "<title>Simple Bookstore App</title>" in get(url)[1]
    assert '"id": 0' in get(f"{url}/api/v1/products")[1]
    assert '"stars": 5' in get(f"{url}/api/v1/products/0/reviews")[1]
    assert '"Reviewer2": 4' in get(f"{url}/api/v1/products/0/ratings")[1]
    assert get(f"{url}/nothing")[0] == 404
    assert get(f"{url}/static/style.css")[0] == 200


def test_ratings_are_gone(start: Start) -> None:
    """BI-08: reviews without ratings say so, and the rest of the page stands."""
    page = get(f"{shop(start, 'v3', ratings='http://127.0.0.1:9')}/productpage")[1]
    assert page.count("Ratings service is currently unavailable") == 2
    assert "full stars" not in page
    assert "Book Details" in page


def test_everything_is_gone(start: Start) -> None:
    """BI-08: the page itself still answers."""
    nowhere = "http://127.0.0.1:9"
    page = start("productpage", DETAILS_URL=nowhere, REVIEWS_URL=nowhere)
    status, text = get(f"{page.url}/productpage")
    assert status == 200
    assert "Error fetching product details!" in text
    assert "Error fetching product reviews!" in text
    assert "Sorry, product reviews are currently unavailable for this book." in text


def test_signing_in_names_the_user_to_the_services(start: Start) -> None:
    """BI-06: the cookie decides; an `end-user` header from outside does not travel on."""
    echo = start("details")
    page = start("productpage", DETAILS_URL=f"{echo.url}/headers#", REVIEWS_URL="http://127.0.0.1:9")

    def told(**headers: str) -> str:
        return get(f"{page.url}/api/v1/products/0", **headers)[1]

    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=10)
    connection.request("POST", "/login", body="username=jason")
    answer = connection.getresponse()
    connection.close()
    assert answer.status == 303
    cookie = (answer.getheader("set-cookie") or "").partition(";")[0]
    assert cookie == "session=jason"
    assert '"end-user": "jason"' in told(cookie=cookie)
    assert "end-user" not in told(end_user="admin")
    assert '"authorization": "Bearer x"' in told(authorization="Bearer x")
    assert "end-user" not in told(cookie="session=a%0d%0aevil: 1")


def test_login_refuses_a_name_that_no_header_can_carry(start: Start) -> None:
    page = start("productpage")
    request = urllib.request.Request(f"{page.url}/login", data=b"username=%0d%0aevil")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 400
    assert "1 to 64 letters" in refused.value.read().decode()


def test_the_second_version_of_ratings_asks_the_database(start: Start) -> None:
    """BI-09 and AZ-27: 5 -> 1 and 4 -> 3 in the database show on the page."""
    database = start("database")
    ratings = start("ratings", "--version", "v2", MONGO_DB_URL=f"mongodb://127.0.0.1:{database.port}/test")
    url = shop(start, "v2", ratings=ratings.url)
    assert "'5 full stars'" in get(f"{url}/productpage")[1]
    change = [sys.executable, "-m", "bookshop", "set-ratings", "1", "3", "--port", str(database.port)]
    subprocess.run(change, cwd=EXAMPLES, check=True, capture_output=True)
    page = get(f"{url}/productpage")[1]
    assert "'1 full stars'" in page
    assert "'3 full stars'" in page


def test_bad_requests(start: Start) -> None:
    service = start("reviews")
    assert get(f"{service.url}/reviews/x") == (400, '{"error": "please provide numeric product ID"}')
    request = urllib.request.Request(f"{service.url}/reviews/0", headers={"content-length": "70000"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 413
    refused.value.close()


def test_manifests() -> None:
    """BI-01, BI-02, ID-05: names, ports, labels, one account per service, one image."""
    objects = list(yaml.safe_load_all((EXAMPLES / "bookshop" / "bookshop.yaml").read_text(encoding="utf-8")))
    by_kind = {kind: [item for item in objects if item["kind"] == kind] for kind in ("Service", "Deployment")}
    assert {
        item["metadata"]["name"]: item["spec"]["ports"][0]["port"] for item in by_kind["Service"]
    } == dict.fromkeys(["details", "productpage", "ratings", "reviews"], 9080)
    deployments = {item["metadata"]["name"]: item["spec"]["template"] for item in by_kind["Deployment"]}
    assert set(deployments) == {
        "details-v1",
        "productpage-v1",
        "ratings-v1",
        *(f"reviews-v{n}" for n in (1, 2, 3)),
    }
    for name, template in deployments.items():
        app, version = name.split("-")
        assert template["metadata"]["labels"] == {"app": app, "version": version}
        assert template["spec"]["serviceAccountName"] == f"bookinfo-{app}"
    assert (
        len({container["image"] for t in deployments.values() for container in t["spec"]["containers"]}) == 1
    )
