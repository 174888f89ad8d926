"""All policies of a mesh, indexed so that those of one workload are found without a search."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Final, Generic, TypeVar

from mesh.policy.codes import PolicyCode
from mesh.policy.compile import CompiledPolicy, compile_policy
from mesh.policy.effective import Finding, Severity
from mesh.policy.leaves import TrustDomains
from mesh.policy.model import (
    AUTHORIZATION_POLICY,
    AuthorizationPolicy,
    PeerAuthentication,
    Policy,
    RequestAuthentication,
)

P = TypeVar("P", bound=PeerAuthentication | RequestAuthentication | AuthorizationPolicy)
T = TypeVar("T")
_MAX_REMEMBERED: Final = 4096


class Index(Generic[P]):
    """Policies of one kind, oldest first, by namespace and selector.

    A policy with a selector is filed under one of its labels, so that a look-up costs one step per
    label of the workload.
    """

    __slots__ = ("_open", "_selective", "_spaces")

    def __init__(self) -> None:
        self._open: dict[str, list[tuple[int, P]]] = {}
        self._selective: dict[tuple[str, str, str], list[tuple[int, P]]] = {}
        self._spaces: set[str] = set()

    def add(self, position: int, policy: P) -> None:
        """File a policy; `position` is its rank by age."""
        namespace, selector = policy.meta.ref.namespace, policy.meta.selector
        if selector is None:
            self._open.setdefault(namespace, []).append((position, policy))
            return
        self._spaces.add(namespace)
        self._selective.setdefault((namespace, *selector.labels[0]), []).append((position, policy))

    def unselective(self, namespace: str) -> list[tuple[int, P]]:
        """Policies of a namespace that have no selector, oldest first."""
        return self._open.get(namespace, [])

    def selective(self, namespace: str, labels: Mapping[str, str]) -> list[tuple[int, P]]:
        """Policies of a namespace whose selector matches, oldest first."""
        if namespace not in self._spaces:
            return []
        found = [
            entry
            for key, value in labels.items()
            for entry in self._selective.get((namespace, key, value), ())
            if entry[1].meta.selector is not None and entry[1].meta.selector.matches(labels)
        ]
        found.sort(key=lambda entry: entry[0])
        return found

    def selected(self, root: str, namespace: str, labels: Mapping[str, str]) -> list[tuple[int, P]]:
        """Every policy that concerns a workload: mesh, namespace and selectors of both."""
        spaces = (root,) if root == namespace else (root, namespace)
        return [
            entry for space in spaces for entry in (*self.unselective(space), *self.selective(space, labels))
        ]


class PolicySet:
    """Immutable set of policies; remembers what it compiled.

    Attributes:
        peer, request, authz: the policies that concern sidecars, by kind.
        findings: objects of the same kind, namespace and name: the older one counts.
    """

    __slots__ = ("_compiled", "_remembered", "authz", "findings", "peer", "policies", "request")

    def __init__(self, policies: Iterable[Policy] = (), *, previous: PolicySet | None = None) -> None:
        """Index policies.

        Args:
            policies: those without a creation time are younger than those with one, and among
                themselves in the order given.
            previous: the set before a change; what it compiled of equal policies is used again, as
                the same objects.
        """
        self.peer: Index[PeerAuthentication] = Index()
        self.request: Index[RequestAuthentication] = Index()
        self.authz: Index[AuthorizationPolicy] = Index()
        self._remembered: dict[Hashable, object] = {}
        findings: list[Finding] = []
        named: dict[tuple[str, str, str], Policy] = {}
        for policy in _by_age(policies):
            ref = policy.meta.ref
            first = named.setdefault((ref.kind, ref.namespace, ref.name), policy)
            if first is not policy:
                where = f" in {first.meta.ref.source}" if first.meta.ref.source else ""
                findings.append(
                    Finding(
                        PolicyCode.DUPLICATE_OBJECT,
                        Severity.ERROR,
                        ref,
                        "metadata.name",
                        f"{ref} exists already{where}; that one counts: rename or remove this one",
                        ref.source,
                    )
                )
        self.policies: tuple[Policy, ...] = tuple(named.values())
        self.findings = tuple(findings)
        for position, policy in enumerate(self.policies):
            self._file(position, policy)
        before = previous._compiled if previous is not None else {}  # noqa: SLF001 - a set of this class
        self._compiled: dict[tuple[str, str], tuple[AuthorizationPolicy, TrustDomains, CompiledPolicy]] = {
            (space, name): before[space, name]
            for kind, space, name in named
            if kind == AUTHORIZATION_POLICY and (space, name) in before
        }

    def _file(self, position: int, policy: Policy) -> None:
        if policy.meta.gateway_only:
            return  # never applies to a sidecar, and above all not to its whole namespace
        match policy:
            case PeerAuthentication():
                self.peer.add(position, policy)
            case RequestAuthentication():
                self.request.add(position, policy)
            case AuthorizationPolicy():
                self.authz.add(position, policy)

    def compiled(self, policy: AuthorizationPolicy, domains: TrustDomains) -> CompiledPolicy:
        """A policy's rules, compiled once per set of trust domains."""
        ref = policy.meta.ref
        known = self._compiled.get((ref.namespace, ref.name))
        if known is None or known[1] != domains or known[0] != policy:
            known = (policy, domains, compile_policy(policy, domains))
            self._compiled[ref.namespace, ref.name] = known
        return known[2]

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value for a key, made at most once while it is remembered.

        The key must say everything that the value depends on besides this set. Two threads may
        make an equal value twice; that is harmless.
        """
        found = self._remembered.get(key)
        if found is None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            found = self._remembered[key] = make()
        return found  # type: ignore[return-value]  # keys start with what they are for


def _by_age(policies: Iterable[Policy]) -> list[Policy]:
    """Oldest first; ties by name, then namespace (policy b.1)."""
    dated: list[Policy] = []
    undated: list[Policy] = []
    for policy in policies:
        (undated if policy.meta.created is None else dated).append(policy)
    dated.sort(key=lambda p: (p.meta.created, p.meta.ref.name, p.meta.ref.namespace))
    return dated + undated
