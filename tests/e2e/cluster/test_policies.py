"""Who may call whom, and with which token: rules in a real cluster, seen by callers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cluster.kubectl import Kubectl
from tests.cluster.marks import CLUSTER
from tests.cluster.mesh import TRUST_DOMAIN, Mesh
from tests.cluster.run import wait_for
from tests.cluster.shop import Shop, open_shop
from tests.fakes.envoy_tokens import Issuer

pytestmark = CLUSTER

BOOKSHOP = Path(__file__).resolve().parents[3] / "examples" / "bookshop"
ISSUER = Issuer("https://issuer.example")
# Prints status and body of one request with the given method and token.
_REQUEST = """
import sys, urllib.error, urllib.request
url, method, token = sys.argv[1:4]
headers = {"Authorization": "Bearer " + token} if token else {}
try:
    with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers), timeout=10) as a:
        print(a.status, a.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


def policy(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


def ask(shop: Shop, path: str, *, method: str = "GET", token: str = "", caller: str = "client") -> str:
    """`STATUS BODY` of one request to the server, from a caller's container."""
    url = f"http://server:9080{path}"
    code, said = shop.kubectl.execute(f"deploy/{caller}", "app", "python", "-c", _REQUEST, url, method, token)
    assert code == 0, said
    return said.strip()


def wait_status(shop: Shop, status: str, path: str = "/health", **how: str) -> str:
    said = ""

    def seen() -> bool:
        nonlocal said
        said = ask(shop, path, **how)
        return said.startswith(status)

    wait_for(f"{status} for {path} {how}", seen, seconds=60)
    return said


def test_rules_by_identity_and_method(mesh: Mesh, injected: Kubectl) -> None:
    shop = open_shop(mesh.kube, injected)
    shop.wait_answer()
    client = f"{TRUST_DOMAIN}/ns/{injected.namespace}/sa/client"
    rules = [{"from": [{"source": {"principals": [client]}}], "to": [{"operation": {"methods": ["GET"]}}]}]
    spec = {"selector": {"matchLabels": {"app": "server"}}, "rules": rules}
    injected.apply([policy("AuthorizationPolicy", "by-client", spec)])
    assert wait_status(shop, "403", method="DELETE").endswith("RBAC: access denied")
    assert ask(shop, "/health").startswith("200")
    rules[0]["from"] = [{"source": {"principals": [client.replace("/sa/client", "/sa/other")]}}]
    injected.apply([policy("AuthorizationPolicy", "by-client", spec)])
    assert wait_status(shop, "403").endswith("RBAC: access denied")
    injected("delete", "authorizationpolicy", "by-client")
    wait_status(shop, "200")


def test_end_user_tokens(mesh: Mesh, injected: Kubectl) -> None:
    """A token is required, is checked, and its claims decide."""
    shop = open_shop(mesh.kube, injected)
    shop.wait_answer()
    selector = {"matchLabels": {"app": "server"}}
    jwt_rule = {"issuer": ISSUER.url, "audiences": ["shop"], "jwks": ISSUER.jwks()}
    required = {
        "selector": selector,
        "rules": [
            {
                "from": [{"source": {"requestPrincipals": [f"{ISSUER.url}/*"]}}],
                "when": [{"key": "request.auth.claims[groups]", "values": ["admin"]}],
            }
        ],
    }
    injected.apply(
        [
            policy("RequestAuthentication", "users", {"selector": selector, "jwtRules": [jwt_rule]}),
            policy("AuthorizationPolicy", "admins", required),
        ]
    )
    good = ISSUER.token(aud="shop", groups=["admin", "staff"])
    wait_status(shop, "403")
    wait_status(shop, "200", token=good)
    assert ask(shop, "/health", token=ISSUER.token(aud="shop", groups=["staff"])).startswith("403")
    assert ask(shop, "/health", token=ISSUER.token(aud="elsewhere", groups=["admin"])).startswith("403")
    assert ask(shop, "/health", token=ISSUER.token(aud="shop", lifetime=-600)).startswith("401")
    assert ask(shop, "/health", token=Issuer(ISSUER.url, "other").token(aud="shop")).startswith("401")
    assert ask(shop, "/health", token="garbage").startswith("401")


def test_the_bookshop_in_the_mesh(mesh: Mesh, injected: Kubectl) -> None:
    """INJ-21, INJ-22: six deployments come up 2/2, the page is whole, and a rule shuts one part of it."""
    text = (BOOKSHOP / "bookshop.yaml").read_text(encoding="utf-8")
    stores = (BOOKSHOP / "ratings-v2.yaml").read_text(encoding="utf-8")
    image = "gatehouse/bookshop:0.1.0"
    injected("apply", "-f", "-", stdin=f"{text}\n---\n{stores}".replace(image, mesh.kube.image("bookshop")))
    pods = injected.wait_ready(count=8, seconds=240)
    assert all(
        {"istio-proxy"} < {status["name"] for status in item["status"]["containerStatuses"]} for item in pods
    )

    def page() -> str:
        get = ("python", "-m", "bookshop", "get", "http://productpage:9080/productpage")
        return injected.execute("deploy/productpage-v1", "productpage", *get)[1]

    def whole() -> bool:
        found = page()
        return "Book Details" in found and "Book Reviews" in found and "Error" not in found

    wait_for("the whole page", whole, seconds=60)
    injected("scale", "deployment/ratings-v1", "--replicas=0")
    injected.wait_gone("pods", "--selector=app=ratings,version=v1")
    injected("scale", "deployment/reviews-v1", "--replicas=0")
    injected.wait_gone("pods", "--selector=app=reviews,version=v1")
    store = ("deploy/mongodb-v1", "mongodb", "python", "-m", "bookshop", "set-ratings", "1", "3")
    assert injected.execute(*store)[0] == 0
    wait_for("stars from the TCP store", lambda: "title='1 full stars'" in page(), seconds=60)
    base = f"{TRUST_DOMAIN}/ns/{injected.namespace}/sa"
    only = {
        "selector": {"matchLabels": {"app": "details"}},
        "rules": [{"from": [{"source": {"principals": [f"{base}/bookinfo-reviews"]}}]}],
    }
    closed = {
        "selector": {"matchLabels": {"app": "mongodb"}},
        "rules": [{"from": [{"source": {"principals": [f"{base}/bookinfo-details"]}}]}],
    }
    injected.apply(
        [policy("AuthorizationPolicy", "details", only), policy("AuthorizationPolicy", "store", closed)]
    )
    wait_for("details are shut", lambda: "Error fetching product details!" in page(), seconds=60)
    wait_for("the store is shut", lambda: "Ratings service is currently unavailable" in page(), seconds=60)
    assert "Book Reviews" in page()
