"""A real Slurm cluster on one machine, for tests: munge, slurmctld and several slurmd.

Everything lives in one directory with ports of its own, so that several clusters can run beside
each other and beside the system's Slurm. It must be started as root; jobs run as ``scepsy-test``.
From a shell::

    python -m tests.slurm.mini_slurm start
    python -m tests.slurm.mini_slurm run -- sinfo
    python -m tests.slurm.mini_slurm stop
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from . import account, cgroup, config, processes
from .client import MiniSlurmError, SlurmClient
from .config import ClusterShape
from .processes import Daemon

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_DIRECTORY = Path(tempfile.gettempdir()) / "scepsy-mini-slurm"


@dataclass
class MiniSlurm(SlurmClient):
    """One cluster in ``directory``; a context manager, or ``start()`` and ``stop()``.

    ``readable`` names further paths that jobs open (say another virtual environment): the user is
    let through their parents, as through those of this checkout and of the running Python.
    """

    shape: ClusterShape = field(default_factory=ClusterShape)
    readable: tuple[Path, ...] = ()
    daemons: dict[str, Daemon] = field(default_factory=dict)

    # Starting and stopping

    def start(self, timeout_s: float = 60.0) -> None:
        """Starts the daemons and returns when every node is idle."""
        self._check_machine()
        if processes.of_cluster(self.conf):
            raise MiniSlurmError(f"{self.directory} has a running cluster; stop it first")
        try:
            self._write_files()
            self._start_munged()
            self._launch("slurmctld", ["slurmctld", "-D", "-c", "-f", str(self.conf)])
            for node in self.shape.node_names:
                self.start_node(node)
            self.wait_until(self._all_idle, timeout_s, "nodes to be idle")
            self._check_user_can_run_python()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Cancels the jobs and ends every process of the cluster, also what jobs left behind."""
        controller = self.daemons.get("slurmctld")
        if controller and controller.process():
            self._cancel_all()
        live = {name: p for name, daemon in self.daemons.items() if (p := daemon.process())}
        # What jobs left goes first, since slurmd waits for it; munged last: the others need it.
        spared = frozenset(process.pid for process in live.values())
        processes.kill(processes.of_cluster(self.conf, spared=spared))
        munged = live.pop("munged", None)
        processes.end(list(live.values()))
        processes.kill([p for p in processes.of_cluster(self.conf) if p != munged])
        processes.end([munged] if munged else [])
        cgroup.remove(self._cgroup_name)
        self.daemons.clear()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The cluster that another process started in ``directory``."""
        state = json.loads((directory / "mini_slurm.json").read_text())
        shape = ClusterShape(**state["shape"] | {"extra_conf": tuple(state["shape"]["extra_conf"])})
        found = {entry["name"]: Daemon(**entry) for entry in state["daemons"]}
        return cls(directory, shape, daemons=found)

    # Nodes that fail

    def start_node(self, node: str) -> None:
        """Starts slurmd for ``node``; it comes back into service by itself (ReturnToService)."""
        command = ["slurmd", "-D", "-N", node, "-f", str(self.conf)]
        self._launch(f"slurmd-{node}", command, {processes.NODE_MARK: node})

    def kill_slurmd(self, node: str) -> None:
        """SIGKILL to the daemon alone: its job steps run on, unattended."""
        process = self.daemons[f"slurmd-{node}"].process()
        processes.kill([process] if process else [])

    def kill_node(self, node: str) -> None:
        """SIGKILL to the daemon and to all that runs on the node, as when the power fails."""
        self.kill_slurmd(node)
        processes.kill(processes.of_cluster(self.conf, node))

    def wait_for_node(self, node: str, state: str, timeout_s: float) -> None:
        """Waits until sinfo shows ``node`` as ``state`` (``idle``, ``down``, ...)."""
        self.wait_until(
            lambda: self.nodes()[node] == state, timeout_s, f"node {node} to be {state}"
        )

    def delegate_cpu_cgroup(self) -> Path:
        """A CPU cgroup for the jobs to divide, removed by stop(); see cgroup.delegate()."""
        return cgroup.delegate(account.ensure_user(), self._cgroup_name)

    # Inside

    @property
    def _cgroup_name(self) -> str:
        return f"mini-slurm-{self.directory.name}"

    def _check_machine(self) -> None:
        if os.geteuid() != 0:
            raise MiniSlurmError("the mini cluster must be started as root: it runs jobs as a user")
        for program in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "setfacl"):
            if shutil.which(program, path=_daemon_path()) is None:
                raise MiniSlurmError(f"{program} is missing; run tests/slurm/install.sh as root")
        if len(str(self.directory)) > 70:
            raise MiniSlurmError(f"{self.directory} is too long for the names of Unix sockets")

    def _write_files(self) -> None:
        owner = account.ensure_user()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        for name in ("log", "state", "spool", "home"):
            (self.directory / name).mkdir(exist_ok=True)
        os.chown(self.home, owner.pw_uid, owner.pw_gid)
        self.home.chmod(0o700)
        places = [REPOSITORY, Path(sys.executable), Path(sys.prefix), Path(sys.base_prefix)]
        for opened in account.let_pass(owner, [*places, self.home, *self.readable]):
            undo = f"setfacl -x u:{owner.pw_name} {opened}"
            print(f"user {owner.pw_name} may now pass through {opened}; undo: {undo}")
        config.make_devices(self.shape, self.directory / "dev")
        port = config.free_ports(self.shape.num_nodes + 1)
        self.conf.write_text(config.slurm_conf(self.shape, self.directory, port))
        (self.directory / "gres.conf").write_text(config.gres_conf(self.shape, self.directory))

    def _start_munged(self) -> None:
        key = self.directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = {"key-file": key, "seed-file": self.directory / "munge.seed"}
        files |= {"pid-file": self.directory / "munged.pid"}
        files |= {"log-file": self.directory / "log" / "munged.log"}
        files |= {"socket": self.directory / "munge.socket"}
        options = [f"--{name}={file}" for name, file in files.items()]
        self._launch("munged", ["munged", "--foreground", "--force", *options])
        self.wait_until(files["socket"].is_socket, 10, "munged to open its socket")

    def _launch(
        self, name: str, command: list[str], extra: Mapping[str, str] | None = None
    ) -> None:
        env = {"SLURM_CONF": str(self.conf), "PATH": _daemon_path(), "LANG": "C.UTF-8"}
        log = self.directory / "log" / f"{name}.out"
        self.daemons[name] = processes.launch(name, command, env | dict(extra or {}), log)
        state = {"shape": asdict(self.shape), "daemons": [asdict(d) for d in self.daemons.values()]}
        (self.directory / "mini_slurm.json").write_text(json.dumps(state, indent=1))

    def _all_idle(self) -> bool:
        dead = [name for name, daemon in self.daemons.items() if daemon.process() is None]
        if dead:
            raise RuntimeError(self.describe(f"{', '.join(dead)} ended at once"))
        return self.nodes() == dict.fromkeys(self.shape.node_names, "idle")

    def _check_user_can_run_python(self) -> None:
        probe = f"import os; os.listdir({str(REPOSITORY)!r})"
        done = self.run_as_user([sys.executable, "-c", probe], check=False)
        if done.returncode != 0:
            raise MiniSlurmError(
                f"the user {account.USER_NAME} cannot run {sys.executable} or read {REPOSITORY}: "
                f"{done.stderr.strip()}"
            )

    def _cancel_all(self) -> None:
        try:
            self._slurm("scancel", "--user", account.USER_NAME)
            active = ["squeue", "-h", "-t", "R,CG,S", "-o", "%i"]
            self.wait_until(lambda: not self._slurm(*active), 3.0, "jobs to end")
        except (MiniSlurmError, subprocess.TimeoutExpired):
            pass  # what does not end by itself is killed right after


def _daemon_path() -> str:
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main() -> int:
    """The command line: start, stop, status, and run a command as the user."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.mini_slurm")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("start", "stop", "status", "run"):
        command = commands.add_parser(name)
        command.add_argument("--dir", type=Path, default=DEFAULT_DIRECTORY)
        if name == "start":
            command.add_argument("--num-nodes", type=int, default=4)
            command.add_argument("--gpus-per-node", type=int, default=4)
            command.add_argument("--gpu-type", default="h100")
        if name == "run":
            command.add_argument("program", nargs=argparse.REMAINDER, help="-- COMMAND ARGS")
    args = parser.parse_args()
    try:
        return _obey(args)
    except MiniSlurmError as error:
        print(f"mini_slurm: {error}", file=sys.stderr)
        return 1


def _obey(args: argparse.Namespace) -> int:
    directory = args.dir.resolve()
    if args.command == "start":
        shape = ClusterShape(
            num_nodes=args.num_nodes, gpus_per_node=args.gpus_per_node, gpu_type=args.gpu_type
        )
        cluster = MiniSlurm(directory, shape)
        cluster.start()
        print(f"started; export SLURM_CONF={cluster.conf}")
        return 0
    if not (directory / "mini_slurm.json").is_file():
        raise MiniSlurmError(f"no cluster was started in {directory}")
    cluster = MiniSlurm.load(directory)
    if args.command == "run":
        program = args.program[args.program[:1] == ["--"] :]
        with cluster.popen_as_user(program) as child:
            return child.wait()
    if args.command == "stop":
        cluster.stop()
    running = processes.of_cluster(cluster.conf)
    print(cluster.describe() if running else "stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
