"""The agent that the drill's batches run: two calls, a gate, a witness of what really happened.

A task says all it needs: `pause_s` between the calls, `gate` (a file without which it goes no
further), `odd` (what is strange about its result) and `witness`, a file outside the results folder
to which begins and ends are appended. Standard library only.
"""

import json
import math
import os
import pathlib
import subprocess
import time
import urllib.request

NUM_TOKENS = {"small": 2, "large": 3}
GATE_POLL_S = 0.05


def run(task):
    """The result of one task: which task it was, and how many tokens came back."""
    _tell(task, "begin")
    if "odd" in task:
        result = _odd(task)
        _tell(task, "end")
        return result
    tokens = _ask("small")
    while "gate" in task and not pathlib.Path(task["gate"]).exists():
        time.sleep(GATE_POLL_S)
    time.sleep(task.get("pause_s", 0.0))
    tokens += _ask("large")
    _tell(task, "end")
    return {"task": task["task_id"], "tokens": tokens}


def _ask(model):
    messages = [{"role": "user", "content": "Say something short."}]
    number = NUM_TOKENS[model]
    body = {"model": model, "messages": messages, "max_tokens": number, "ignore_eos": True}
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions",
        json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": "Bearer " + os.environ["OPENAI_API_KEY"],
        },
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["usage"]["completion_tokens"]


def _tell(task, what):
    line = json.dumps([what, task["task_id"], time.time(), os.getpid()]) + "\n"
    descriptor = os.open(task["witness"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def _odd(task):
    kind, text = task["odd"], {"task": task["task_id"]}
    if kind == "lone_surrogate":
        return text | {"text": "\ud800"}
    if kind == "line_separator":
        return text | {"text": "a\u2028b\u0085c\x0b\x1cd"}
    if kind == "nul":
        return text | {"text": "a\0b"}
    if kind == "deep":
        return text | {"deep": _nested(600)}
    if kind == "deeper":
        return text | {"deep": _nested(100_000)}
    if kind == "nan":
        return text | {"number": math.nan}
    if kind == "huge_number":
        return text | {"number": 10**5000}
    if kind == "large_result":
        return text | {"text": "x" * 8_000_000}
    if kind == "no_json":
        return {"task": {1, 2}}
    if kind == "huge_stdout":
        for _ in range(20):
            print("y" * 1_000_000)
        return text
    if kind == "orphan":
        subprocess.Popen(["setsid", "sleep", "600"], stdin=subprocess.DEVNULL)
        return text
    raise ValueError(f"no such oddity: {kind}")


def _nested(depth):
    found = []
    for _ in range(depth):
        found = [found]
    return found
