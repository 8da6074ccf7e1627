"""Routing decisions, without a network."""

import math

import pytest

from scepsy_hpc.formats.parallelism import Parallelism
from scepsy_hpc.formats.plan import Deployment, Plan, PlanWorkflow
from scepsy_hpc.formats.spans import Span
from scepsy_hpc.planning.curves.curve import Curve, TokenLengths
from scepsy_hpc.planning.curves.queueing import Server
from scepsy_hpc.planning.simulation.arrivals import Open
from scepsy_hpc.planning.simulation.events import simulate_timeline
from scepsy_hpc.serving.routing import Routes, retry_delay_s

NONE = frozenset()


def routes(*names):
    made = Routes({("rag", "generator"): "generator"})
    made.update({name: ("generator", f"http://{name}") for name in names})
    return made


def test_least_in_flight_then_longest_idle():
    """Idle replicas take turns; a busy one is left alone while another is free."""
    made = routes("a", "b")
    first = made.pick("generator", 0.0, NONE).instance_id
    second = made.pick("generator", 0.0, NONE).instance_id
    assert {first, second} == {"a", "b"}
    made.release(first)
    assert made.pick("generator", 0.0, NONE).instance_id == first
    made.release(first)
    made.release(second)
    assert made.pick("generator", 0.0, NONE).instance_id == second


def test_one_that_was_never_picked_goes_first():
    """It has waited longest, also beside one whose suspicion has passed."""
    made = routes("a", "b", "c")
    for name in ("a", "b", "c"):
        assert made.pick("generator", 0.5, NONE).instance_id == name
        made.release(name)
        made.suspect(name, 0.2)


def test_a_failed_replica_is_avoided_while_another_is_there():
    """The call that failed goes elsewhere even if that is busier; alone it must do."""
    made = routes("a", "b")
    made.pick("generator", 0.0, frozenset({"a"}))
    assert made.pick("generator", 0.0, frozenset({"a"})).instance_id == "b"
    made.update({"a": ("generator", "http://a")})
    assert made.pick("generator", 0.0, frozenset({"a"})).instance_id == "a"


def test_suspicion_passes():
    """An instance that did not answer is spared until the time is over."""
    made = routes("a", "b")
    made.suspect("a", 5.0)
    assert {made.pick("generator", 1.0, NONE).instance_id for _ in range(3)} == {"b"}
    assert made.pick("generator", 6.0, NONE).instance_id == "a"


def test_no_ready_instance_is_none_and_a_restarted_one_counts_on():
    """A restart changes the URL, not what is known about calls in flight."""
    made = routes("a")
    assert made.pick("generator", 0.0, NONE).in_flight == 1
    made.update({})
    assert made.pick("generator", 0.0, NONE) is None
    made.update({"a": ("generator", "http://new")})
    again = made.pick("generator", 0.0, NONE)
    assert (again.base_url, again.in_flight) == ("http://new", 2)


def test_only_ready_instances_of_the_deployment_take_its_calls():
    """A call never goes to another deployment, however idle, nor to one that is unready."""
    made = Routes({("rag", "generator"): "generator", ("rag", "judge"): "judge"})
    made.update({"g": ("generator", "http://g"), "j": ("judge", "http://j")})
    assert {made.pick("judge", 0.0, NONE).instance_id for _ in range(3)} == {"j"}
    made.update({"g": ("generator", "http://g")})
    assert made.pick("judge", 0.0, NONE) is None
    assert made.pick("generator", 0.0, NONE).instance_id == "g"


def test_a_call_is_counted_in_and_out():
    """In flight goes up and down with the calls, the number of calls only up."""
    made = routes("a")
    made.pick("generator", 0.0, NONE)
    state = made.pick("generator", 0.0, NONE)
    assert (state.in_flight, state.num_calls) == (2, 2)
    made.release("a")
    made.release("gone")
    assert (state.in_flight, state.num_calls) == (1, 2)


def test_avoiding_goes_before_suspicion_and_suspicion_before_load():
    """Rather a suspect one than the one that just failed; rather a busy one than a suspect one."""
    made = routes("a", "b")
    made.suspect("b", 5.0)
    made.suspect("gone", 5.0)
    assert made.pick("generator", 1.0, frozenset({"a"})).instance_id == "b"
    for _ in range(4):
        assert made.pick("generator", 1.0, NONE).instance_id == "a"
    assert made.pick("generator", 5.0, NONE).instance_id == "b"


def test_an_alias_means_a_deployment_of_its_own_workflow():
    """Two workflows may give one alias two meanings; each knows its own aliases, in order."""
    made = Routes({("rag", "b"): "small", ("rag", "a"): "large", ("beam", "b"): "large"})
    assert (made.deployment("rag", "b"), made.deployment("beam", "b")) == ("small", "large")
    assert made.deployment("beam", "a") is None
    assert made.known_aliases("rag") == ["a", "b"]
    assert made.known_aliases("beam") == ["b"]


@pytest.mark.parametrize("outcome", ["unreachable", "broken_off"])
def test_silence_is_waited_out_for_minutes(outcome):
    """Eleven delays that double from a tenth of a second up to half a minute, then no more.

    0.1 + 0.2 + ... + 25.6 is 51.1 s, and two of 30 s.
    """
    delays = [retry_delay_s(outcome, attempt) for attempt in range(1, 13)]
    assert delays[:3] == [0.1, 0.2, 0.4]
    assert delays[8:] == [25.6, 30.0, 30.0, None]
    assert sum(delays[:11]) == pytest.approx(111.1)


def test_back_pressure_is_waited_out_longer():
    """199 delays from 0.05 s up to two seconds; an agent's own error is never tried again."""
    delays = [retry_delay_s("overloaded", attempt) for attempt in range(1, 201)]
    assert delays[:7] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert set(delays[6:199]) == {2.0}
    assert delays[199] is None
    assert retry_delay_s("error_400", 1) is None


def test_the_simulator_picks_as_the_dispatcher_does():
    """Calls that the simulator sent to three replicas, replayed: the dispatcher sends each there.

    Runs of a call, then three at once, then another, arrive by chance; a call starts after those
    that end at the same moment.
    """
    calls = simulated_calls(num_runs=60)
    made = routes("0", "1", "2")
    events = [(start_s, 1, number) for number, (_, start_s, _) in enumerate(calls)]
    events += [(end_s, 0, number) for number, (_, _, end_s) in enumerate(calls)]
    for _, is_start, number in sorted(events):
        replica = calls[number][0]
        if is_start:
            assert made.pick("generator", 0.0, NONE).instance_id == replica
        else:
            made.release(replica)
    assert max(state.num_calls for state in made.instances.values()) < len(calls) / 2


def simulated_calls(num_runs):
    """Replica, start and end of each call, in the order in which they were sent."""

    def call(run, name, start_s, end_s):
        known = {"llm": "generator", "input_tokens": 10, "output_tokens": 10, "status": "ok"}
        return Span(run_id=run, span_id=name, kind="llm", start_s=start_s, end_s=end_s, **known)

    spans = []
    for number in range(num_runs):
        run, lasts_s = f"r{number}", 1.0 + 0.37 * (number % 7)
        spans.append(call(run, "first", 0.0, lasts_s))
        spans += [call(run, f"then{n}", lasts_s, lasts_s + 1.0 + 0.1 * n) for n in range(3)]
        spans.append(call(run, "last", lasts_s + 1.5, lasts_s + 3.0))
    deployment = Deployment(
        model="m",
        engine="vllm",
        gpu_type="h100_sxm",
        tp_degree=1,
        gpu_share_pct=100,
        num_replicas=3,
    )
    curve = Curve(
        kind=Parallelism("h100_sxm", None, 1, 100),
        tokens=TokenLengths(10.0, 10.0),
        server=Server((1.0, 4.0), (1.0, 2.0)),
        ttft_s=(math.nan, math.nan),
        flags=(),
        bundle_sha256="0",
        memory_gib=78.0,
    )
    timeline = simulate_timeline(
        Plan(
            workflows=(PlanWorkflow(name="rag", llms={"generator": "generator"}),),
            llms={"generator": deployment},
        ),
        {"rag": spans},
        {"generator": curve},
        Open(num_runs, 0.8),
        seed=3,
    )
    replicas = [str(replica) for replica in timeline.call_replica]
    return list(zip(replicas, timeline.call_start_s, timeline.call_end_s, strict=True))
