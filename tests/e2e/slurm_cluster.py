"""A real Slurm cluster of two nodes on this machine, for the time of a test: loopback only, all of it in one folder."""

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

# Ranks meet at the name of the first node, so it must resolve: an address does, whatever /etc/hosts says.
NODES = ("127.0.0.1", "127.0.0.2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "sinfo")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
START_S, STOP_S, CLIENT_S = 30.0, 5.0, 20.0

_CONFIG = """
ClusterName=distsam
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
# More CPUs than the machine has.
SlurmdParameters=config_overrides
KillWait=3
MinJobAge=3600
FirstJobId={first_job}
PropagateResourceLimits=NONE
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def what_is_missing() -> str | None:
    """Why this machine cannot run a cluster, or None if it can."""
    absent = [program for program in PROGRAMS if _which(program) is None]
    if absent:
        return f"needs Debian's slurmctld, slurmd, slurm-client and munge; not installed: {', '.join(absent)}"
    return None if os.geteuid() == 0 else "slurmd needs root"


class SlurmCluster:
    """munged, slurmctld and one slurmd a node; a context manager.

    Everything it starts, directly or as a job, carries the path of its own slurm.conf in its environment: that is how
    it is found again at the end, and nothing else is touched.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="distsam-slurm-"))
        self._conf = self.folder / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "SlurmCluster":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal_all(number)
        for daemon in self._daemons:
            daemon.wait(STOP_S)
        shutil.rmtree(self.folder)

    def run(
        self, command: Sequence[str], cwd: Path, timeout_s: float, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A Slurm client's output; it is killed, and the test fails, after `timeout_s`.

        Its input is empty, and not /dev/null: on a machine that was restored from a copy of its files that can be a
        plain file with megabytes in it, which srun sends to tasks that read nothing, and then it loses them.
        """
        return subprocess.run(
            command,
            cwd=cwd,
            env=self._environment() | dict(env or {}),
            input="",
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def submit(self, command: Sequence[str], cwd: Path, timeout_s: float, env: Mapping[str, str]) -> dict[str, str]:
        """What `scontrol show job` says of a batch job once it has ended."""
        empty = self.folder / "empty"
        empty.touch()
        submitted = self.run(["sbatch", "--parsable", f"--input={empty}", *command], cwd, CLIENT_S, env)
        assert submitted.returncode == 0, submitted.stderr
        job = submitted.stdout.strip()
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            shown = self.run(["scontrol", "show", "job", "--oneliner", job], cwd, CLIENT_S).stdout
            facts = dict(word.partition("=")[::2] for word in shown.split())
            if facts.get("JobState") in ENDED:
                return facts
            time.sleep(0.2)
        raise TimeoutError(f"job {job} had not ended after {timeout_s} s: {shown}\n{self._logs()}")

    def _start(self) -> None:
        self.folder.chmod(0o755)  # munged wants its socket's folder open
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._conf.write_text(self._config_text())
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        socket_file = self.folder / "munge.sock"
        self._launch("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_file}",
                     *(f"--{name}-file={self.folder}/munged.{name}" for name in ("pid", "log", "seed")))  # fmt: skip
        self._wait_for("munged", socket_file.exists)
        self._launch("slurmctld", "-D", "-c", "-f", str(self._conf))
        for node in NODES:
            self._launch("slurmd", "-D", "-N", node, "-f", str(self._conf))
        self._wait_for("nodes", self._nodes_are_idle)

    def _config_text(self) -> str:
        # Jobs derive their ports from their number: clusters of tests side by side must not begin at the same one.
        host, first_job = socket.gethostname().partition(".")[0], random.randrange(1, 1000)
        ports = _free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 State=UNKNOWN\n"
            for node, port in zip(NODES, ports[1:], strict=True)
        ]
        text = _CONFIG.format(host=host, port=ports[0], folder=self.folder, first_job=first_job)
        return "".join(nodes) + text

    def _launch(self, program: str, *arguments: str) -> None:
        found = _which(program)
        assert found is not None
        with (self.folder / f"{program}.{len(self._daemons)}.log").open("wb") as log:
            self._daemons.append(
                subprocess.Popen([found, *arguments], env=self._environment(), stdout=log, stderr=log, cwd="/")
            )

    def _nodes_are_idle(self) -> bool:
        listed = self.run(["sinfo", "--noheader", "--Node", "--format=%t"], self.folder, CLIENT_S)
        return listed.stdout.split() == ["idle"] * len(NODES)

    def _wait_for(self, what: str, holds: Callable[[], bool]) -> None:
        end_s = time.monotonic() + START_S
        while not holds():
            if time.monotonic() > end_s or any(daemon.poll() is not None for daemon in self._daemons):
                raise RuntimeError(f"{what} did not come up\n{self._logs()}")
            time.sleep(0.05)

    def _logs(self) -> str:
        return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))

    def _environment(self) -> dict[str, str]:
        outer = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
        return outer | {"SLURM_CONF": str(self._conf)}

    def _signal_all(self, number: signal.Signals) -> None:
        """Send a signal to all that belongs to the cluster and wait, for a while, until it is gone."""
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        end_s = time.monotonic() + STOP_S
        while self._processes() and time.monotonic() < end_s:
            time.sleep(0.05)

    def _processes(self) -> list[int]:
        for daemon in self._daemons:
            daemon.poll()  # a zombie of ours would count as alive
        mark = f"SLURM_CONF={self._conf}".encode()
        return [pid for pid in _all_pids() if mark in _environment_of(pid)]


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is a zombie
        return []
