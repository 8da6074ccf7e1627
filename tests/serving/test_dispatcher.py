"""The dispatcher under both routing rules, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from scepsy_hpc.formats.plan import Plan, PlanWorkflow, Routing
from scepsy_hpc.serving.dispatcher import Dispatcher, dispatcher_of
from scepsy_hpc.tracing.proxy.router import CallOutcome, CallTarget


def dispatcher(routing: Routing, names: Sequence[str] = ("a", "b")) -> Dispatcher:
    plan = Plan(workflows=(PlanWorkflow(name="rag", llms={"writer": "llm"}),), routing=routing)
    made = dispatcher_of(plan, "key", 1.0)
    made.routes.update({name: ("llm", f"http://{name}") for name in names})
    return made


def pick(made: Dispatcher, holder: str | None = None, avoid: Sequence[str] = ()) -> CallTarget:
    return asyncio.run(made.pick("writer", "r1", frozenset(avoid), holder))


STICKY = Routing(rule="sticky_prefix", max_behind=1)


def test_a_sticky_dispatcher_goes_to_the_holder_unless_it_is_too_busy() -> None:
    """Two calls more than the idle `a` are one too many; when one ends the holder is back."""
    made = dispatcher(STICKY)
    targets = [pick(made, "b") for _ in range(3)]
    assert [target.name for target in targets] == ["b", "b", "a"]
    made.release(targets[0], CallOutcome("ok", 1.0))
    assert pick(made, "b").name == "b"


def test_least_in_flight_asks_nobody_who_holds_what() -> None:
    """The default rule takes turns."""
    made = dispatcher(Routing())
    assert [pick(made, "b").name for _ in range(4)] == ["a", "b", "a", "b"]


def test_a_holder_that_is_gone_unready_failed_or_suspect_is_passed_over() -> None:
    """The call goes to whoever is left, by load."""
    made = dispatcher(STICKY)
    assert pick(made, "gone").name == "a"
    assert pick(made, "b", avoid=["b"]).name == "a"
    made.release(CallTarget("http://b", "llm", "b"), CallOutcome("unreachable", 1.0))
    made.routes.instances["b"].in_flight = 0
    assert pick(made, "b").name == "a"
    made.routes.instances["b"].suspect_until_s = 0.0
    assert pick(made, "b").name == "b"
    made.routes.update({"a": ("llm", "http://a")})
    assert pick(made, "b").name == "a"


def test_calls_to_one_instance_share_its_wire() -> None:
    """So that all of them can be cut, and any byte of them is its sign of life."""
    made = dispatcher(Routing())
    first, second, third = (pick(made) for _ in range(3))
    assert first.wire is third.wire is made.routes.instances["a"].wire
    assert second.wire is made.routes.instances["b"].wire
