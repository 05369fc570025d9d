"""Drill: a run on three machines, which are network namespaces: two train (torchrun, DDP), a third serves (vLLM on the CPU).

    sudo python benchmarks/namespaces.py [--keep]

A tiny model is warmed up and trained by world-model GRPO. Its weights travel to the server by vLLM's weight transfer over gloo after
each step. The server is killed once in the middle and started again. The same config then runs in one process. The table
has the log-probability gaps of trainer and server around each update, and the largest difference of the two runs' metrics.
The program exits with 1 unless the gap was above 0.1 nats before the first update and below 1e-4 after every one, and the
metrics agree to 1e-3. It needs root for the namespaces, and deletes them at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from rwml_lightning.generation.servers.check import Need
from rwml_lightning.trace import TraceReader

ROOT = Path(__file__).parents[1]
SWITCH, MACHINES = "rwml-switch", ("rwml-trainer0", "rwml-trainer1", "rwml-server")
ADDRESSES = ("10.77.0.1", "10.77.0.2", "10.77.0.3")
URL = f"http://{ADDRESSES[2]}:8000"
LENGTH = 128
KILL_AFTER_UPDATES = 4
WAIT_S = 900.0
TIMES = ("time/", "throughput/", "memory/")
CPU = {
    "PYTHONPATH": ":".join(str(ROOT / part) for part in ("", "callbacks", "tui", "tests")),
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "eth0",  # of the ranks' own group; the channel to the server finds its interface
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


@dataclass
class Drill:
    """The machines of a drill and what runs on them.

    Args:
        folder: Folder of the model, configs, logs and runs.
    """

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, machine: int, command: Sequence[str], log: str, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a command on a machine."""
        with (self.folder / log).open("ab") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", MACHINES[machine], *command],
                stdout=file, stderr=file, start_new_session=True, env={**os.environ, **CPU, **environment}, cwd=ROOT,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def serve(self) -> subprocess.Popen[bytes]:
        """Start the server with the command that the trainer prints."""
        words = shlex.split(Need(str(self.folder / "model"), LENGTH).command(URL, on_cpu=True))
        command = [
            sys.executable, *words[2:], "--enforce-eager", "--max-num-seqs", "16", "--kv-cache-memory-bytes", "100000000",
        ]  # fmt: skip
        return self.start(2, command, "server.log", VLLM_SERVER_DEV_MODE="1")

    def train(self, name: str, num_machines: int) -> list[subprocess.Popen[bytes]]:
        """Start a run with one process on each machine."""
        config = self.write_config(name)
        commands = []
        for rank in range(num_machines):
            launcher = [
                "-m", "torch.distributed.run", "--nnodes", str(num_machines), "--nproc-per-node", "1", "--node-rank", str(rank),
                "--master-addr", ADDRESSES[0], "--master-port", "29500",
            ] if num_machines > 1 else []  # fmt: skip
            several = (
                ["--trainer.num_nodes", str(num_machines), "--trainer.strategy", "ddp"]
                if num_machines > 1
                else []
            )
            fit = ["-m", "rwml_lightning", "fit", "--config", str(config), *several]
            commands.append([sys.executable, *launcher, *fit])
        return [
            self.start(rank, command, f"{name}-{rank}.log", NODE_RANK=str(rank))
            for rank, command in enumerate(commands)
        ]

    def write_config(self, name: str) -> Path:
        """Write the config of a run of eight steps; see :func:`support.runs.write_resumable_config`."""
        from support.runs import write_resumable_config

        file = write_resumable_config(self.folder, self.folder / "model", name, kill_at=None)
        config: dict[str, Any] = yaml.safe_load(file.read_text())
        # A low rate, at which the rounding of another batch flips no sample.
        config["model"]["init_args"]["optimizer"]["learning_rate"] = 2e-4
        config["trainer"]["devices"] = 1
        config["trainer"]["callbacks"] = [
            {
                "class_path": "support.measured_sync.MeasuredSync",
                "init_args": {"file": str(self.updates(name))},
            }
        ]
        config["data"]["generator"] = {
            "class_path": "rwml_lightning.generation.VLLMServerGenerator",
            "init_args": {"urls": [URL], "max_model_len": LENGTH, "startup_timeout_s": WAIT_S, "outage_timeout_s": WAIT_S},
        }  # fmt: skip
        file.write_text(yaml.safe_dump(config))
        return file

    def updates(self, name: str) -> Path:
        """Return the file of a run's updates."""
        return self.folder / f"{name}.updates.jsonl"

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the updates of a run so far."""
        file = self.updates(name)
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def wait(self, processes: Sequence[subprocess.Popen[bytes]], name: str) -> None:
        """Wait until a run has ended well."""
        for process in processes:
            if process.wait(WAIT_S) != 0:
                tails = [
                    f"{log.name}: {log.read_text()[-2000:]}"
                    for log in sorted(self.folder.glob(f"{name}*.log"))
                ]
                raise RuntimeError("the run failed\n" + "\n".join(tails))


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children, as a power cut would."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def machines() -> Iterator[None]:
    """Make the namespaces and the switch between them; delete them at the end."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        ip("netns", "add", SWITCH)
        ip("-n", SWITCH, "link", "add", "br0", "type", "bridge")
        ip("-n", SWITCH, "link", "set", "br0", "up")
        for place, (machine, address) in enumerate(zip(MACHINES, ADDRESSES, strict=True)):
            port = f"port{place}"
            ip("netns", "add", machine)
            ip("-n", machine, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", SWITCH)
            ip("-n", SWITCH, "link", "set", port, "master", "br0", "up")
            ip("-n", machine, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", machine, "link", "set", device, "up")
        yield
    finally:
        for namespace in (*MACHINES, SWITCH):
            left = subprocess.run(
                ["ip", "netns", "pids", namespace], check=False, capture_output=True, text=True
            )
            for pid in map(int, left.stdout.split()):  # torchrun's ranks have sessions of their own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", namespace], check=False, stderr=subprocess.DEVNULL)


def write_model(folder: Path) -> None:
    """Write a tiny model with heads of 64, the smallest that vLLM computes on a CPU."""
    from support.models import teach, write_tiny_model
    from support.worlds import make_world

    world = make_world()
    model, tokenizer = write_tiny_model(folder, world, vocabulary=340, hidden_size=128, num_attention_heads=2)
    teach(model, tokenizer, [t for t in world if t.split == "train"], num_steps=60)
    model.save_pretrained(folder)


def differences(folder: Path) -> dict[tuple[str, int, str], float]:
    """Return the relative difference of each metric of the two runs, by stage, step and name, without times."""
    from support.runs import metrics_of

    def numbers(name: str) -> dict[tuple[str, int, str], float]:
        rows = metrics_of(folder / "runs" / name)
        return {(stage, step, key): value for stage, step, key, value in rows if not key.startswith(TIMES)}

    one, two = numbers("one"), numbers("two")
    if one.keys() != two.keys():
        raise RuntimeError(f"the runs have different metrics: {sorted(one.keys() ^ two.keys(), key=str)[:5]}")
    return {
        key: abs(one[key] - two[key]) / max(abs(one[key]), 0.1) for key in one if "sync_gap" not in key[2]
    }


def completions(store: Path) -> dict[tuple[int, str, str, int], str]:
    """Return the text of every completion of world-model GRPO, by step, source, transition and member."""
    with TraceReader(store) as reader:
        return {
            (group.step, group.source, group.transition_id, one.member): one.text
            for group in reader.groups(limit=-1)
            if group.stage == "wm_grpo"
            for one in reader.predictions(group.id)
        }


def main() -> int:
    """Run the drill and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder of logs and runs")
    keep = parser.parse_args().keep
    sys.path.insert(0, str(ROOT / "tests"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces are deleted
    folder = Path(tempfile.mkdtemp(prefix="rwml-namespaces-"))
    write_model(folder / "model")
    drill = Drill(folder)
    table = Table("run", "version", "gap before (nats)", "gap after (nats)", "update (s)", title=str(folder))
    try:
        with machines():
            server = drill.serve()
            ranks = drill.train("two", 2)
            while len(drill.rows("two")) < KILL_AFTER_UPDATES and all(rank.poll() is None for rank in ranks):
                time.sleep(0.1)
            end(server)
            killed = len(drill.rows("two"))
            server = drill.serve()
            drill.wait(ranks, "two")
            drill.wait(drill.train("one", 1), "one")
    finally:
        for process in drill.processes:
            process.wait(30)
    for name in ("two", "one"):
        for place, row in enumerate(drill.rows(name)):
            before = "" if row["before"] is None else f"{row['before']:.3g}"
            table.add_row(name, str(row["version"]), before, f"{row['after']:.2g}", f"{row['seconds']:.2f}")
            if name == "two" and place + 1 == killed:
                table.add_row(name, "", "the server is killed and started again", "", "")
    gaps = differences(folder)
    worst = max(gaps, key=gaps.__getitem__)
    console = Console()
    console.print(table)
    console.print(
        f"{len(gaps)} metrics of two machines and of one process: largest relative difference {gaps[worst]:.2g} ({worst[2]}, step {worst[1]})"
    )
    one, two = (completions(folder / "runs" / name / "trace.db") for name in ("one", "two"))
    others = sorted(place for place in one if one[place] != two[place])
    console.print(
        f"{len(others)} of {len(one)} completions differ"
        + (f", the first in step {others[0][0]}: {one[others[0]]!r} and {two[others[0]]!r}" if others else "")
    )
    first, rows = drill.rows("two")[0], drill.rows("two") + drill.rows("one")
    good = first["before"] > 0.1 and max(row["after"] for row in rows) < 1e-4 and gaps[worst] < 1e-3
    console.print("passed" if good else "FAILED")
    if good and not keep:
        subprocess.run(["rm", "-r", str(folder)], check=True)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
