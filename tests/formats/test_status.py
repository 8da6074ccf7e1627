"""Status files: the keys that others read stand there whatever is known."""

from __future__ import annotations

import pytest

from scepsy_hpc.errors import InputError
from scepsy_hpc.files import check
from scepsy_hpc.formats.status import InstanceStatus, RunStatus, TaskCounts, WatchedRun

KEYS = ["state", "updated_s", "attempt", "started_s", "url", "tasks", "instances", "alerts"]


def test_a_status_has_all_its_keys() -> None:
    """Before anything is known most are null; from outside there are three more."""
    plain = RunStatus(attempt="a-0", updated_s=5.0).plain()
    more = ["error", "lead", "last_lead"]
    assert list(plain) == [*KEYS, *more]
    assert plain == {
        **dict.fromkeys(plain),
        "state": "waiting",
        "updated_s": 5.0,
        "attempt": "a-0",
        "instances": (),
        "alerts": (),
        "lead": 0,
    }
    watched = WatchedRun(attempt="a-0", recorded=3, alive=None, cluster="slurm").plain()
    assert list(watched) == [*KEYS, *more, "recorded", "alive", "cluster"]


def test_what_is_written_is_read() -> None:
    """Counts and instances come back as records; an unknown state is refused."""
    counts = TaskCounts(
        total=9, recorded_before=1, ok=2, failed=1, in_flight=3, waiting=2, retried=4
    )
    one = InstanceStatus(id="l0", llm="l", host="n1", gpus=("0", "GPU-a"), state="ready", starts=1)
    status = RunStatus(attempt="a-0", state="running", tasks=counts, instances=(one,))
    assert check(status.plain(), RunStatus, "status.json") == status
    keys = "id llm host gpus state starts error time_sliced suspect_since_s last_death"
    keys += " calls_in_flight num_calls"
    assert list(status.plain()["instances"][0]) == keys.split()
    with pytest.raises(InputError, match=r'status.json: state: .*got "paused"'):
        check({**status.plain(), "state": "paused"}, RunStatus, "status.json")
