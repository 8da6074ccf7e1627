"""What rank 0 concludes from the reports and the silence of the nodes."""

import asyncio
from dataclasses import replace

from scepsy_hpc.formats.plan import Instance
from scepsy_hpc.serving import beats, engine_view
from scepsy_hpc.serving.addresses import LOOPBACK, node_address
from scepsy_hpc.serving.allocation import GrantedNode, PlacedInstance
from scepsy_hpc.serving.engine_view import EngineReport, EngineView
from scepsy_hpc.serving.routing import Routes
from scepsy_hpc.serving.run_folder import RunFolder, read_json, write_json
from scepsy_hpc.tracing.proxy.router import GivenUp

PATIENCE_S = 100.0


def placed(name, llm, rank):
    instance = Instance(id=name, llm=llm, node=f"n{rank}", gpus=(0,), gpu_share_pct=100)
    return PlacedInstance(instance=instance, rank=rank, host=f"host{rank}", gpus=("0",))


def view_of(tmp_path, *instances):
    """An attempt folder in which every rank has reported itself, and the view of it."""
    attempt = RunFolder(tmp_path).attempt("a-0")
    for one in instances:
        write_json(attempt.node(one.rank), GrantedNode(rank=one.rank, host=one.host, domains=()))
    return attempt, EngineView(attempt, instances, PATIENCE_S)


def report(attempt, name, llm, state, starts=1, error=""):
    said = EngineReport(
        id=name,
        llm=llm,
        host="host1" if name == "b" else "host0",
        gpus=("0",),
        state=state,
        starts=starts,
        error=error,
        base_url=f"http://{name}",
    )
    write_json(attempt.engine(name), said)


def test_a_batch_waits_for_first_starts_only(tmp_path):
    """Every LLM needs one ready instance; an instance in its second start holds nobody up."""
    attempt, view = view_of(tmp_path, placed("a", "x", 0), placed("b", "x", 0))
    report(attempt, "a", "x", "ready")
    view.look()
    assert not view.is_hosted(["x"])
    report(attempt, "b", "x", "starting", starts=1)
    view.look()
    assert not view.is_hosted(["x"])
    report(attempt, "b", "x", "starting", starts=2, error="it died")
    view.look()
    assert view.is_hosted(["x"])
    assert not view.is_hosted(["x", "y"])
    assert view.endpoints() == {"a": ("x", "http://a")}


def test_an_llm_is_dead_when_all_its_instances_are_given_up(tmp_path):
    """One instance that may come back keeps it alive; the reason is the engine's first error."""
    attempt, view = view_of(tmp_path, placed("a", "x", 0), placed("b", "x", 0))
    report(attempt, "a", "x", "failed", 4, "no memory\nmore")
    report(attempt, "b", "x", "restarting", 2, "no memory\nmore")
    view.look()
    assert view.dead(["x"]) is None
    report(attempt, "b", "x", "failed", 4, "no memory\nmore")
    view.look()
    assert view.dead(["x"]) == "x: all its 2 instances are gone, first error: no memory\nmore"
    assert view.alerts()[0] == "a on host0: failed after 4 starts: no memory"


def test_a_silent_node_is_lost_and_may_come_back(tmp_path, monkeypatch):
    """Without signs of life its instances take no calls, until it shows itself again."""
    now_s = 0.0
    monkeypatch.setattr(beats.time, "monotonic", lambda: now_s)
    attempt, view = view_of(tmp_path, placed("a", "x", 0), placed("b", "x", 1))
    for name in ("a", "b"):
        report(attempt, name, "x", "ready")
    write_json(attempt.beat(1), 1)
    view.look()
    now_s = 50 * PATIENCE_S
    view.look()
    assert set(view.endpoints()) == {"a", "b"}, "who slept himself has seen nothing"
    for _ in range(4):
        now_s += PATIENCE_S / 3
        view.look()
    assert set(view.endpoints()) == {"a"}
    assert [one.state for one in view.states(Routes({}))] == ["ready", "lost"]
    assert view.alerts() == ("b on host1: lost after 1 starts",)
    write_json(attempt.beat(1), 2)
    view.look()
    assert set(view.endpoints()) == {"a", "b"}


def test_a_report_that_cannot_be_read_changes_nothing(tmp_path):
    """A half-seen file on a network file system does not take an engine out of service."""
    attempt, view = view_of(tmp_path, placed("a", "x", 0))
    report(attempt, "a", "x", "ready")
    view.look()
    attempt.engine("a").write_text('{"llm": "x", "sta')
    view.look()
    assert set(view.endpoints()) == {"a"}


def test_a_suspect_takes_no_calls_but_is_not_given_up(tmp_path):
    """It may work again; those it has stay, while those of one that was killed end at once."""
    attempt, view = view_of(tmp_path, placed("a", "x", 0), placed("b", "x", 0))
    report(attempt, "a", "x", "suspect", error="no sign of work for 30 s")
    report(attempt, "b", "x", "ready")
    view.look()
    assert set(view.endpoints()) == {"b"}
    assert view.is_hosted(["x"])
    report(attempt, "b", "x", "failed")
    view.look()
    assert view.dead(["x"]) is None


def test_every_node_hears_of_bytes_and_the_calls_of_the_dead_are_cut(tmp_path, monkeypatch):
    """What ``follow`` does at each look: the last byte of each engine in a file, and the cut."""
    attempt, view = view_of(tmp_path, placed("a", "x", 0), placed("b", "x", 0))
    routes, cut = Routes({}), []
    for name in ("a", "b"):
        report(attempt, name, "x", "ready")
    monkeypatch.setattr(engine_view, "_LOOK_S", 0.005)

    async def main():
        following = asyncio.create_task(view.follow(routes))
        async with asyncio.timeout(20):
            while len(routes.instances) < 2:
                await asyncio.sleep(0.005)
            routes.instances["a"].wire.last_byte_s = 7.5
            while not attempt.traffic.exists():
                await asyncio.sleep(0.005)
            report(attempt, "b", "x", "restarting")
            try:
                async with routes.instances["b"].wire.call():
                    await asyncio.Event().wait()
            except GivenUp:
                cut.append("b")
        following.cancel()

    asyncio.run(main())
    assert read_json(attempt.traffic, dict[str, float]) == {"a": 7.5}
    assert cut == ["b"]


def test_an_instance_that_moved_is_heard_in_its_new_place_only(tmp_path):
    """What its old node says of it, when that wakes up, is a word about the past."""
    moved = replace(placed("a", "x", 1), term=1)
    attempt, view = view_of(tmp_path, moved)
    report(attempt, "a", "x", "stopped")
    view.look()
    assert view.reports["a"].state == "waiting"
    write_json(attempt.engine("a", 1), replace(view.reports["a"], state="ready"))
    view.look()
    assert view.reports["a"].state == "ready"


def test_a_wish_to_stop_outlives_a_requeue(tmp_path):
    """The user's stop reaches the next start of the same job, and no other job of the folder."""
    folder = RunFolder(tmp_path)
    write_json(folder.attempt("job1-0").asked, {})
    stopped = [folder.attempt(name).is_stopped() for name in ("job1-0", "job1-1", "job2-0")]
    assert stopped == [True, True, False]
    write_json(folder.attempt("job2-0").stop, {})
    stopped = [folder.attempt(name).is_stopped() for name in ("job2-0", "job2-1")]
    assert stopped == [True, False]


def test_engines_of_one_machine_listen_on_loopback_only():
    """With other nodes to talk to, the address is the one on the way to them, as routes say."""
    assert node_address(["here", "here"], "here") == LOOPBACK
    assert node_address(["here", "127.0.0.9"], "here") == "127.0.0.1"
