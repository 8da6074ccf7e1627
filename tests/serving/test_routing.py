"""Routing decisions, without a network."""

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


def test_retries_end():
    """Back-pressure is waited out longer than silence; an agent's own error is never retried."""
    silent = [retry_delay_s("unreachable", n) for n in range(1, 14)]
    assert None not in silent[:11]
    assert silent[12] is None
    assert sum(s for s in silent if s) > 60
    assert retry_delay_s("overloaded", 150) == 2.0
    assert retry_delay_s("overloaded", 201) is None
    assert retry_delay_s("error_400", 1) is None
    assert retry_delay_s("broken_off", 1) is None
