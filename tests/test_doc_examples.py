"""What the pages tell people to type works: commands, options, files and settings.

Nothing in a page is written for this test. A line that starts with `scepsy` in a code block, or
`scepsy ...` between backticks, is an example:

- Each is parsed by the command itself, so commands, options and values are right. Between backticks
  a command may stand without its arguments; a word `...` stands for those left out.
- A complete example of a command that needs files only (FROM_FILES), or with `--dry-run`, is
  executed: page by page, in order, in a folder where the names of WORLD are shipped files.
- A block of YAML with a `schema` is read as that kind of file; one of Python is executed.
- Scripts, modules, make targets and options of scripts that a page names are there.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from scepsy_hpc.cli.main import scepsy
from scepsy_hpc.cluster.site import load_site
from scepsy_hpc.formats.plan import load_plan
from scepsy_hpc.formats.topology import load_topology
from scepsy_hpc.formats.workflow import load_workflow
from scepsy_hpc.profiling.spec import load_spec

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    path.relative_to(ROOT)
    for pattern in (
        *("README.md", "CONTRIBUTING.md", "docs/*.md", "profiles/README.md"),
        *("workflows/*/README.md", "bench/README.md", "bench/gpu/README.md"),
        *("jobs/*.sbatch", "jobs/sites/*.yaml"),
    )
    for path in sorted(ROOT.glob(pattern))
]
SPEC = "scepsy/profile-spec/v1"
LOADERS = {
    "scepsy/workflow/v1": load_workflow,
    "scepsy/topology/v1": load_topology,
    SPEC: load_spec,
    "scepsy/plan/v1": load_plan,
    "scepsy/site/v1": load_site,
}
FROM_FILES = ("demand", "plan", "predict", "simulate", "bundle", "spans")
# Parsed only, and why.
NEEDS_MORE = {
    "doctor": "what it says is this machine's",
    "topology": "asks NVML or Slurm",
    "profile": "starts engines; --dry-run is executed",
    "trace": "starts engines and agents",
    "run": "starts engines and agents",
    "serve": "starts engines",
    "status": "needs a run",
    "logs": "needs a run",
    "stop": "needs a run",
    "clean": "needs a run",
    "report": "needs a run",
    "demo": "takes minutes; CI runs it",
}
NEED_A_RUN = ("clean",)  # even for a dry run
NEITHER = {"scepsy COMMAND --help": "COMMAND stands for each command"}
# Names in examples, and the shipped files they stand for.
WORLD = {
    "workflow.yaml": "workflows/rag_rerank/workflow.yaml",
    "spans.jsonl": "workflows/rag_rerank/spans.jsonl",
    "tasks.jsonl": "workflows/rag_rerank/tasks.jsonl",
    "session.json": "tests/data/agent_traces/trace_0332.json",
    "topology.yaml": "docs/examples/h100x4.yaml",
    **{name: name for name in ("profiles", "workflows", "docs/examples")},
}

# Tables of points from elsewhere, one row each: their sources are not shipped.
TABLES = {
    "h100_sxm.csv": "h100_sxm",
    "h100_sxm_vllm_0.24.0.csv": "h100_sxm",
    "a100_sxm_vllm_0.14.0.csv": "a100_sxm",
}
TABLE = (
    "gpu_type,engine,engine_version,model,tp_degree,input_tokens,output_tokens,concurrency,"
    "throughput_rps,ttft_s,tpot_s,latency_s\n"
    "{gpu_type},vllm,0.24.0,org/tiny,1,512,64,4,2.0,0.5,0.02,2.0\n"
)


@dataclass(frozen=True)
class Example:
    """One command line of a page; ``in_text`` where it stands between backticks."""

    where: str
    words: tuple[str, ...]
    in_text: bool

    @property
    def line(self) -> str:
        return " ".join(self.words)


def readable(page: Path) -> str:
    """A page as Markdown: of a script the comments are the text and its lines are code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.suffix == ".md":
        return text
    # What the script sets as a default is what its commands are given.
    defaults = dict(re.findall(r"^(\w+)=\$\{\w+:-([^}]*)\}", text, flags=re.M))
    text = re.sub(r"\$(\w+)", lambda found: defaults.get(found[1], found[0]), text)
    return re.sub(r"^(?:# ?|(?=\w))", lambda m: "" if m[0] else "    ", text, flags=re.M)


def split(text: str) -> tuple[list[tuple[int, str]], str, list[tuple[str, str]]]:
    """Lines of code with their numbers, the rest, and the fenced blocks with their language."""
    code, rest, blocks, fence = [], [], [], None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
            if fence is not None:
                blocks.append((fence, ""))
        elif fence is not None:
            code.append((number, line))
            blocks[-1] = (fence, f"{blocks[-1][1]}{line}\n")
        elif line.startswith("    "):
            code.append((number, line.strip()))
        else:
            rest.append(line)
    return code, "\n".join(rest), blocks


def lines_of(code: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Command lines, a line that ends with a backslash joined with the next."""
    held = ""
    for number, line in code:
        held += line.removesuffix("\\")
        if not line.endswith("\\"):
            yield number, held
            held = ""


def in_backticks(text: str) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def examples_of(page: Path) -> list[Example]:
    code, rest, _ = split(readable(page))
    typed = [(f"{page}:{n}", line, False) for n, line in lines_of(code)]
    named = [(str(page), span, True) for span in in_backticks(rest)]
    return [
        Example(where, tuple(shlex.split(line, comments=True)), in_text)
        for where, line, in_text in (*typed, *named)
        if re.match(r"scepsy\s+\S", line)
    ]


def examples_in_help(command: click.Command = scepsy, name: str = "scepsy") -> Iterator[Example]:
    """What the commands' own help shows."""
    text = f"{command.help or ''}\n{command.epilog or ''}"
    typed = [line.strip() for _, line in lines_of(list(enumerate(text.splitlines())))]
    found = [(line, False) for line in typed] + [(span, True) for span in in_backticks(text)]
    for line, in_text in found:
        if re.match(r"scepsy\s+\S", line):
            yield Example(f"{name} --help", tuple(shlex.split(line)), in_text)
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for sub in command.list_commands(context):
            found_sub = command.get_command(context, sub)
            assert found_sub is not None
            yield from examples_in_help(found_sub, f"{name} {sub}")


def is_complete(example: Example) -> bool:
    """Whether it parses as it stands; fails where a word of it is wrong."""
    command, context = scepsy, click.Context(scepsy, info_name="scepsy")
    words = [word for word in example.words[1:] if word != "..."]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        found = command.get_command(context, name)
        known = ", ".join(command.list_commands(context))
        assert found, f"{example.where}: {example.line}: there is no {name}; known: {known}"
        command, context = found, click.Context(found, parent=context, info_name=name)
    try:
        command.make_context(context.info_name, words, parent=context.parent)
    except click.exceptions.Exit:
        return False  # --help, --version
    except click.UsageError as error:
        missing = isinstance(error, click.MissingParameter | click.exceptions.NoArgsIsHelpError)
        if missing and (example.in_text or "..." in example.words):
            return False
        pytest.fail(f"{example.where}: {example.line}: {error.format_message()}")
    return "..." not in example.words


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WORLD, a plan of it, and the spec of docs/profiling.md."""
    folder = tmp_path_factory.mktemp("world")
    for name, source in WORLD.items():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        (folder / name).parent.mkdir(exist_ok=True)
        copy(ROOT / source, folder / name)
    (spec,) = (text for _, text in split(readable(Path("docs/profiling.md")))[2] if SPEC in text)
    for name in ("spec.yaml", "profile.yaml"):
        (folder / name).write_text(spec, encoding="utf-8")
    given = {"workflow": "workflow.yaml", "spans": "spans.jsonl", "topology": "topology.yaml"}
    given |= {"profiles": "profiles", "output": "plan.yaml"}
    options = [f"--{option}={folder / name}" for option, name in given.items()]
    done = CliRunner().invoke(scepsy, ["plan", *options, "--rate=1"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def world(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working directory."""
    folder = tmp_path / "world"
    shutil.copytree(shipped, folder)
    for name, gpu_type in TABLES.items():
        (folder / name).write_text(TABLE.format(gpu_type=gpu_type))
    monkeypatch.chdir(folder)
    return folder


def execute(examples: list[Example]) -> None:
    """Parse all, and execute those that need files only."""
    for example in examples:
        if example.line in NEITHER or not is_complete(example):
            continue
        dry = "--dry-run" in example.words and example.words[1] not in NEED_A_RUN
        if example.words[1] in FROM_FILES or dry:
            done = CliRunner().invoke(scepsy, example.words[1:])
            assert done.exit_code == 0, (
                f"{example.where}: {example.line}: {done.exception or ''}\n{done.output}"
            )


def test_each_command_is_executed_or_has_a_reason() -> None:
    """A new command is put into FROM_FILES or NEEDS_MORE on purpose."""
    commands = scepsy.list_commands(click.Context(scepsy))
    assert sorted((*FROM_FILES, *NEEDS_MORE)) == sorted(commands)


def test_pages_have_examples() -> None:
    """The examples of the pages are found: each command is shown somewhere, none is left aside."""
    found = [example for page in PAGES for example in examples_of(page)]
    shown = {example.words[1] for example in found if not example.in_text}
    assert {"plan", "profile", "run", "bundle", "doctor"} <= shown
    named = {example.words[1] for example in found}
    assert named >= {*FROM_FILES, *NEEDS_MORE} - {"logs", "stop"}
    assert {example.line for example in found} >= set(NEITHER)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_examples_work(page: Path, world: Path) -> None:
    """Every `scepsy` line of a page parses, and what needs files only ends with exit code 0."""
    execute(examples_of(page))


def test_examples_in_help_work(world: Path) -> None:
    """So do the lines that `--help` shows."""
    examples = list(examples_in_help())
    assert len(examples) > 10
    execute(examples)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_blocks_work(page: Path, world: Path) -> None:
    """YAML is what its `schema` says, and Python runs."""
    blocks = split(readable(page))[2]
    if page.suffix == ".yaml":
        blocks = [("yaml", (ROOT / page).read_text(encoding="utf-8"))]
    for language, text in blocks:
        if language == "python":
            exec(compile(text, str(page), "exec"), {})
        elif language == "yaml" and "schema" in (found := yaml.safe_load(text)):
            assert found["schema"] in LOADERS, f"{page}: {found['schema']}: add it to LOADERS"
            (world / "example.yaml").write_text(text, encoding="utf-8")
            LOADERS[found["schema"]](world / "example.yaml")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_named_scripts_and_targets_exist(page: Path) -> None:
    """What a page runs with python, bash, sbatch or make is there, with the options it shows."""
    code, rest, _ = split(readable(page))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for line in (*(line for _, line in lines_of(code)), *in_backticks(rest)):
        words = re.sub(r"\s#.*", "", line).split()
        if words[:1] == ["make"]:
            asked = {word for word in words[1:] if re.fullmatch(r"[a-z-]+", word)}
            assert asked <= targets, f"{page}: {line}: the Makefile has no {asked - targets}"
        elif words[:2] in (["python", "-m"], ["python3", "-m"]) and "scepsy_hpc" in words[2]:
            assert importlib.util.find_spec(words[2]), f"{page}: {line}: no such module"
        elif script := next((w for w in words if re.match(r"(bench|jobs)/.+\.\w+$", w)), None):
            file = ROOT / script
            assert file.is_file(), f"{page}: {line}: there is no {script}"
            known = "".join(p.read_text() for p in file.parent.glob(f"*{file.suffix}"))
            options = [w for w in words[words.index(script) :] if re.match(r"--\w", w)]
            assert all(option in known for option in options), f"{page}: {line}: {options}"
