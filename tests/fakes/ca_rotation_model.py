"""A mesh in which roots are rotated, as a model: replicas that read late, agents that ask any of them.

Only what the rotation decides is real (`ca.core.rotation`). Roots are numbers, certificates are (root, epoch,
end). Time is in seconds. `Mesh.check` is the law that must hold at every moment.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ca.core.rotation import (
    INITIAL,
    Decision,
    Facts,
    Request,
    RotationSettings,
    RotationState,
    apply,
    plan,
)
from mesh.ca_status import AgentCounts, Step

START = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
LAG = 60
"""Within it every replica reads the Secret, the leader hears what agents report, and sees new agents."""
LIFETIME = 600
ROOT_LIFE = 40_000
SETTINGS = RotationSettings(
    hold=dt.timedelta(seconds=2 * LAG),
    prepare_before=dt.timedelta(seconds=30_000),  # so that rotations follow each other
    leaf_lifetime=dt.timedelta(seconds=LIFETIME),
    margin=dt.timedelta(seconds=LAG),
)
Plan = Callable[[RotationState, Facts, RotationSettings], Decision]


@dataclass(frozen=True)
class Version:
    """What one write of the Secret left there."""

    state: RotationState
    roots: tuple[int, ...]  # the first one signs
    written: int


@dataclass(frozen=True)
class Bundle:
    generation: int
    roots: frozenset[int]


NOTHING = Bundle(0, frozenset())


@dataclass(frozen=True)
class Certificate:
    root: int
    epoch: int
    end: int


@dataclass
class Workload:
    """What a proxy has: it takes its certificate and its roots from the agent, one after the other."""

    certificate: Certificate
    bundle: Bundle


@dataclass(frozen=True)
class Report:
    roots: frozenset[int]
    epoch: int
    pending: int
    outdated: int
    heard: int  # when the leader knows it


@dataclass
class Agent:
    seen: int  # when the leader knows it
    bundle: Bundle = NOTHING
    epoch: int = 0
    workloads: list[Workload] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def learn(self, bundle: Bundle, epoch: int) -> None:
        if bundle.generation > self.bundle.generation:
            self.bundle = bundle
        self.epoch = max(self.epoch, epoch)

    def report(self, heard: int) -> Report:
        roots = self.bundle.roots
        pending = sum(w.bundle.roots != roots for w in self.workloads)
        outdated = sum(w.certificate.epoch < self.epoch for w in self.workloads)
        return Report(roots, self.epoch, pending, outdated, heard)


class Mesh:
    """Everything; the methods are what may happen, in any order.

    Args:
        decide: `plan`, or what a test plants in its place.
    """

    def __init__(self, replicas: int = 3, decide: Plan = plan, settings: RotationSettings = SETTINGS) -> None:
        self.now = 0
        self.decide = decide
        self.settings = settings
        self.made = {1: 0}  # when each root was made
        self.secret = [Version(INITIAL, (1,), 0)]
        self.read = [0] * replicas  # index into `secret`, for each replica
        self.agents: list[Agent] = []
        self.taken: list[Step] = []

    # --- what may happen ---

    def advance(self, seconds: int) -> None:
        """Time goes by; nobody stays behind for longer than `LAG`."""
        end = self.now + seconds
        while self.now < end:
            unread = [self.secret[i + 1].written + LAG for i in self.read if i + 1 < len(self.secret)]
            self.now = min([end, *(at for at in unread if at > self.now)])
            for replica, index in enumerate(self.read):
                if index + 1 < len(self.secret) and self.secret[index + 1].written + LAG <= self.now:
                    self.read[replica] = index + 1

    def look(self, replica: int) -> None:
        """A replica reads the Secret."""
        self.read[replica] = len(self.secret) - 1

    def lead(self, replica: int, request: Request | None = None) -> Decision:
        """A replica that believes to lead decides by what it has read; the write is compare-and-swap."""
        held = self.secret[self.read[replica]]
        root = held.roots[0]
        made = START + dt.timedelta(seconds=self.made[root])
        now = START + dt.timedelta(seconds=self.now)
        facts = Facts(
            now=now,
            root_not_before=made,
            root_not_after=made + dt.timedelta(seconds=ROOT_LIFE),
            counts=self.counts(held),
            request=request,
        )
        decision = self.decide(held.state, facts, self.settings)
        if decision.step is None or self.read[replica] != len(self.secret) - 1:
            return decision  # nothing to do, or a conflict
        state = apply(held.state, decision.step, now, self.settings, request=request)
        self.secret.append(Version(state, self._roots(held.roots, decision.step), self.now))
        self.taken.append(decision.step)
        return decision  # it may die before it reads what it wrote

    def _roots(self, roots: tuple[int, ...], step: Step) -> tuple[int, ...]:
        match step:
            case Step.PREPARE:
                made = max(self.made) + 1
                self.made[made] = self.now
                return (roots[0], made, *roots[1:])
            case Step.ACTIVATE:
                return (roots[1], roots[0], *roots[2:])
            case Step.TAINT:
                return roots
            case Step.RETIRE:
                return roots[:1]
            case Step.ABORT:
                return (roots[0], *roots[2:])

    def join(self, delay: int = LAG) -> None:
        """A node with an agent, which the leader sees after `delay`."""
        self.agents.append(Agent(self.now + delay))

    def leave(self, agent: int) -> None:
        """A node goes, with all that runs there."""
        del self.agents[agent % len(self.agents)]

    def restart(self, agent: int) -> None:
        """The agent forgets; the proxies keep what they have."""
        found = self.agents[agent % len(self.agents)]
        found.bundle, found.epoch = NOTHING, 0

    def sync(self, agent: int, replica: int, delay: int = LAG) -> None:
        """The agent says how things stand, which is heard after `delay`, and gets that replica's roots."""
        found, version = self.agents[agent % len(self.agents)], self.secret[self.read[replica]]
        found.reports.append(found.report(self.now + delay))
        found.learn(Bundle(version.state.generation, frozenset(version.roots)), version.state.epoch)

    def issue(self, agent: int, replica: int, *, renew: int | None = None) -> None:
        """A certificate for a new workload, or another one for one that runs."""
        found, version = self.agents[agent % len(self.agents)], self.secret[self.read[replica]]
        found.learn(Bundle(version.state.generation, frozenset(version.roots)), version.state.epoch)
        root = version.roots[0]
        if root not in found.bundle.roots:
            return  # the agent refuses the answer, and asks another replica later
        certificate = Certificate(root, version.state.epoch, self.now + LIFETIME)
        if renew is None or not found.workloads:
            found.workloads.append(Workload(certificate, found.bundle))
        else:
            found.workloads[renew % len(found.workloads)].certificate = certificate

    def deliver(self, agent: int) -> None:
        """The agent's proxies take the roots that it hands out."""
        found = self.agents[agent % len(self.agents)]
        if found.bundle is not NOTHING:
            for workload in found.workloads:
                workload.bundle = found.bundle

    # --- what is known, and what must hold ---

    def counts(self, version: Version) -> AgentCounts:
        """As the leader knows it: new agents and new reports may come to it late."""
        roots, epoch = frozenset(version.roots), version.state.epoch
        expected = [a for a in self.agents if a.seen <= self.now]
        heard = [(a, [r for r in a.reports if r.heard <= self.now][-1:]) for a in expected]
        reports = [r[0] for _, r in heard if r and r[0].epoch >= epoch]
        acked = sum(r.roots == roots and not r.pending for r in reports)
        return AgentCounts(
            expected=len(expected),
            reported=len(reports),
            acked=acked,
            pending=sum(r.pending for r in reports),
            outdated=sum(r.outdated for r in reports),
        )

    def live(self) -> list[Workload]:
        return [w for a in self.agents for w in a.workloads if w.certificate.end > self.now]

    def check(self) -> None:
        """Every two that live verify each other; numbers never fall."""
        held = {w.certificate.root for w in self.live()}
        for workload in self.live():
            missing = held - workload.bundle.roots
            assert not missing, f"{workload.bundle} does not trust {missing} at {self.now}"
        for before, after in zip(self.secret, self.secret[1:], strict=False):
            assert after.state.generation >= before.state.generation
            assert after.state.epoch >= before.state.epoch
            if set(before.roots) != set(after.roots):
                assert after.state.generation > before.state.generation
            if before.roots[0] != after.roots[0]:
                assert after.state.epoch > before.state.epoch


def impatient(step: Step) -> Plan:
    """A fault to plant: this step waits for nothing."""

    def decide(state: RotationState, facts: Facts, settings: RotationSettings) -> Decision:
        decision = plan(state, facts, settings)
        return replace(decision, step=step) if decision.next_step is step else decision

    return decide


def deaf(state: RotationState, facts: Facts, settings: RotationSettings) -> Decision:
    """A fault to plant: what agents say is not heard, only the times count."""
    return plan(state, replace(facts, counts=AgentCounts()), settings)
