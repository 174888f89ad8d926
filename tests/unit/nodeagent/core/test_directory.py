"""A directory over time: what stays in force while something is broken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.policy.effective import Severity
from nodeagent.core.directory import DEFAULT_MESH, Directory, FileError, World
from nodeagent.core.fields import DocumentCode

API = "apiVersion: gatehouse.dev/v1alpha1\n"


def workload(name: str = "web", *, address: str = "127.0.10.1", extra: str = "", account: str = "sa") -> str:
    return (
        f"---\n{API}kind: Workload\nmetadata: {{namespace: demo, name: {name}}}\n"
        f"spec:\n  serviceAccount: {account}\n  tokenFile: t\n  address: {address}\n"
        f'  ports: [{{number: 80, app: "127.0.0.1:80"}}]\n{extra}'
    )


def service(name: str, host: str = "") -> str:
    return (
        f"---\n{API}kind: Service\nmetadata: {{namespace: demo, name: {name}}}\nspec:\n"
        f"  selector: {{app: x}}\n  ports: [{{number: 80}}]\n" + (f"  host: {host}\n" if host else "")
    )


def mesh(domain: str = "example.org") -> str:
    return f"---\n{API}kind: Mesh\nmetadata: {{name: {domain}}}\nspec: {{trustDomain: {domain}}}\n"


def key_set(name: str, where: str = 'jwksUri: "https://i/keys"') -> str:
    return f"---\n{API}kind: KeySet\nmetadata: {{name: {name}}}\nspec: {{{where}, file: k.json}}\n"


def policy(name: str = "deny", action: str = "DENY") -> str:
    return (
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
        f"metadata: {{namespace: demo, name: {name}}}\nspec: {{action: {action}, rules: [{{}}]}}\n"
    )


def names(world: World) -> list[str]:
    return [spec.workload.name for spec in world.workloads]


@pytest.fixture
def directory() -> Directory:
    return Directory()


def test_an_empty_directory_has_defaults(directory: Directory) -> None:
    world = directory.update({})
    assert world == World()
    assert world.mesh is DEFAULT_MESH


def test_several_documents_and_kinds_in_one_file(directory: Directory) -> None:
    world = directory.update({"a.yaml": mesh() + workload() + service("reviews") + policy()})
    assert world.mesh.trust_domain.name == "example.org"
    assert names(world) == ["web"]
    assert [s.host for s in world.services] == ["reviews.demo.svc.cluster.local"]
    assert [p.meta.ref.name for p in world.policies] == ["deny"]
    assert world.findings == ()


def test_a_removed_document_and_a_removed_file_take_their_objects_along(directory: Directory) -> None:
    directory.update({"a.yaml": workload("web") + workload("api", address="127.0.10.2"), "b.yaml": policy()})
    assert names(directory.update({"a.yaml": workload("web")})) == ["web"]
    assert directory.update({"b.yaml": None}).policies == ()
    assert names(directory.update({"a.yaml": None, "never.yaml": None})) == []


def test_a_broken_document_keeps_its_last_good_form(directory: Directory) -> None:
    directory.update({"a.yaml": workload("web") + workload("api", address="127.0.10.2")})
    broken = workload("web", account="NO!") + workload("api", address="127.0.10.3")
    world = directory.update({"a.yaml": broken})
    by_name = {s.workload.name: s.workload for s in world.workloads}
    assert by_name["web"].service_account == "sa"  # the last good
    assert by_name["api"].address == "127.0.10.3"  # the other change still applies
    (finding,) = world.findings
    assert finding.place == "a.yaml:6"
    assert finding.field == "spec.serviceAccount"
    assert "what was good before stays in force" in finding.message


def test_a_broken_policy_keeps_its_last_good_form(directory: Directory) -> None:
    before = directory.update({"p.yaml": policy()}).policies
    world = directory.update({"p.yaml": policy(action="DENYY")})
    assert world.policies == before
    assert world.findings[0].severity is Severity.ERROR
    assert (world.findings[0].place or world.findings[0].ref.source).startswith("p.yaml:")
    assert "stays in force" in world.findings[0].message


def test_a_file_that_is_not_yaml_keeps_everything_in_it(directory: Directory) -> None:
    directory.update({"a.yaml": workload() + policy()})
    world = directory.update({"a.yaml": workload() + "  : ]["})
    assert names(world) == ["web"]
    assert len(world.policies) == 1
    (finding,) = world.findings
    assert finding.code is DocumentCode.YAML
    assert finding.place.startswith("a.yaml:")
    assert not finding.message.startswith("a.yaml")
    assert "stays in force" in finding.message


def test_a_file_that_cannot_be_read_keeps_everything_in_it(directory: Directory) -> None:
    directory.update({"a.yaml": workload()})
    world = directory.update({"a.yaml": FileError("is not UTF-8 text")})
    assert names(world) == ["web"]
    assert world.findings[0].code is DocumentCode.FILE


def test_a_new_file_that_is_broken_says_nothing_about_the_past(directory: Directory) -> None:
    world = directory.update({"a.yaml": "]"})
    assert "stays" not in world.findings[0].message


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(workload().replace("kind: Workload", "kind: Wrkload"), id="kind"),
        pytest.param(workload().replace("name: web", "nam: web"), id="name-key"),
        pytest.param(workload().replace("name: web", "name: Web"), id="name-value"),
        pytest.param(workload().replace("metadata:", "metadatum:"), id="metadata"),
        pytest.param("just text", id="text"),
    ],
)
def test_while_a_document_cannot_be_identified_nothing_of_its_file_goes(
    directory: Directory, broken: str
) -> None:
    directory.update({"a.yaml": workload()})
    world = directory.update({"a.yaml": broken})
    assert names(world) == ["web"]
    assert world.findings
    assert names(directory.update({"a.yaml": ""})) == []


def test_fixing_clears_the_finding(directory: Directory) -> None:
    directory.update({"a.yaml": workload(account="NO!")})
    world = directory.update({"a.yaml": workload()})
    assert (names(world), world.findings) == (["web"], ())


DUPLICATES = [
    ("same-object", workload(), workload(), "is written twice, first at a.yaml:2"),
    ("two-meshes", mesh("one.org"), mesh("two.org"), "is written twice, first at a.yaml:2"),
    ("same-host", service("x", "h.example"), service("y", "h.example"), "has the host h.example"),
    ("same-keys", key_set("x"), key_set("y"), "has the address https://i/keys of the one at a.yaml:2"),
    (
        "same-issuer",
        key_set("x", 'issuer: "https://i"'),
        key_set("y", 'issuer: "https://i/"'),
        "has the address https://i/.well-known/openid-configuration",
    ),
    ("same-uid", workload("x", extra="  uid: u\n"), workload("y", extra="  uid: u\n"), "has the uid u"),
]


@pytest.mark.parametrize(
    ("first", "second", "message"), [pytest.param(*case[1:], id=case[0]) for case in DUPLICATES]
)
def test_of_two_that_cannot_both_be_the_first_counts(
    directory: Directory, first: str, second: str, message: str
) -> None:
    world = directory.update({"b.yaml": second, "a.yaml": first})
    findings = [f for f in world.findings if f.severity is Severity.ERROR]
    assert [f.code for f in findings] == [DocumentCode.DUPLICATE]
    assert message in findings[0].message
    assert findings[0].place.startswith("b.yaml:")
    in_force = (*world.workloads, *world.services, *world.key_sets)
    assert len(in_force) + (world.mesh is not DEFAULT_MESH) == 1
    again = directory.update({"a.yaml": None})
    assert not again.findings  # with the first gone, the second counts


def test_two_workloads_at_one_address_are_a_warning(directory: Directory) -> None:
    world = directory.update({"a.yaml": workload("web") + workload("api")})
    assert names(world) == ["web", "api"]
    (finding,) = world.findings
    assert finding.severity is Severity.WARNING
    assert "127.0.10.1:80" in finding.message


def test_files_and_places_are_known(directory: Directory) -> None:
    world = directory.update({"sub/a.yaml": workload()})
    assert set(world.files.values()) == {"sub/a.yaml"}
    assert set(world.places.values()) == {"sub/a.yaml:2"}


texts = st.sampled_from(
    ["", "]", "x", workload(), workload("api"), policy(), mesh(), service("s"), workload(account="!")]
)


@given(
    history=st.lists(st.dictionaries(st.sampled_from(["a.yaml", "b.yaml"]), st.none() | texts), max_size=8)
)
def test_after_everything_is_repaired_the_past_leaves_no_trace(history) -> None:
    directory = Directory()
    for changed in history:
        directory.update(changed)
    last = {"a.yaml": workload() + policy(), "b.yaml": service("reviews")}
    assert directory.update(last) == Directory().update(last)
