"""The configuration files of a mini cluster: several slurmd on one host, each with its own port."""

from __future__ import annotations

import os
import random
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterShape:
    """What the cluster pretends to be; Slurm believes it (``config_overrides``).

    ``extra_conf`` lines are appended to slurm.conf and win over ours. The three times are short
    so that tests are: sites have 300 s, 30 s and 120 s.
    """

    num_nodes: int = 4
    gpus_per_node: int = 4
    gpu_type: str = "h100"
    cpus_per_node: int = 16
    node_memory_gib: int = 64
    node_down_after_s: int = 20
    kill_wait_s: int = 10
    requeue_delay_s: int = 15
    extra_conf: tuple[str, ...] = ()

    @property
    def node_names(self) -> list[str]:
        return [f"n{index}" for index in range(1, self.num_nodes + 1)]

    @property
    def node_range(self) -> str:
        return f"n[1-{self.num_nodes}]"


def slurm_conf(shape: ClusterShape, directory: Path, controller_port: int) -> str:
    """Text of slurm.conf. The slurmd ports follow ``controller_port`` one by one.

    Partition ``gpu`` is the default; a job in ``preempt`` takes nodes from it by requeueing.
    A requeued job waits until its credential has expired, hence ``cred_expire`` (at least 5 s).
    """
    host = socket.gethostname().split(".")[0]
    first, last = controller_port + 1, controller_port + shape.num_nodes
    lines = f"""\
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire={shape.requeue_delay_s}
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/slurmd-%n.log
SlurmdParameters=config_overrides
SlurmdTimeout={shape.node_down_after_s}
KillWait={shape.kill_wait_s}
MinJobAge=300
ReturnToService=2
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=5,sched_min_interval=100000,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1024
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={shape.node_range} NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] \
CPUs={shape.cpus_per_node} RealMemory={shape.node_memory_gib * 1024} \
Gres=gpu:{shape.gpu_type}:{shape.gpus_per_node}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=preempt Nodes=ALL MaxTime=INFINITE PriorityTier=10
"""
    return lines + "".join(f"{line}\n" for line in shape.extra_conf)


def gres_conf(shape: ClusterShape, directory: Path) -> str:
    """Text of gres.conf: the same device files stand for the GPUs of every node."""
    devices = f"{directory}/dev/gpu[0-{shape.gpus_per_node - 1}]"
    return f"NodeName={shape.node_range} Name=gpu Type={shape.gpu_type} File={devices}\n"


def make_devices(shape: ClusterShape, directory: Path) -> None:
    """Character devices (1, 3: /dev/null) that stand for GPUs: Slurm wants some to exist."""
    directory.mkdir(exist_ok=True)
    for index in range(shape.gpus_per_node):
        device = directory / f"gpu{index}"
        if not device.exists():
            os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))


def free_ports(num_ports: int) -> int:
    """The first of ``num_ports`` free ports in a row, below the range the kernel hands out.

    Starts are 50 apart and drawn at random, so that clusters which start together rarely meet.
    """
    for base in random.sample(range(20_000, 32_000, 50), k=50):
        if all(_is_free(port) for port in range(base, base + num_ports)):
            return base
    raise RuntimeError(f"no {num_ports} free ports in a row between 20000 and 32000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
