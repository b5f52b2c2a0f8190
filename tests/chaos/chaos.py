"""Kill commands at random times, continue them, and compare with what they write when nobody disturbs them.

    python tests/chaos/chaos.py --kills 100 --seed 0

Every round starts one job in an empty folder, disturbs it once or twice (SIGKILL, SIGTERM, SIGINT, a full disk, a lost
worker, a vanished folder), continues it until it is done, and checks that

- what it wrote is, times and machine apart, bit for bit what the undisturbed job writes: weights, records, images;
- there is no file that the undisturbed job does not leave, and none is missing;
- every process that it started has ended soon after it, and nobody printed a traceback.
"""

import argparse
import atexit
import hashlib
import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

HERE = Path(__file__).parent
RUN = [sys.executable, "-m", "equipoise"]
SOON = 5.0
"""Seconds within which the processes of a command have ended after it."""
LATER = 120.0
"""The same of Ray's own daemons, which look for a killed driver now and then."""
DAEMONS = ("raylet", "gcs_server", "dashboard", "Dashboard", "monitor", "runtime_env", "RuntimeEnv")
"""What their commands hold."""
LONG = 600.0
"""Seconds after which a command counts as hanging."""
VOLATILE = {
    "seconds", "date", "started", "finished", "command", "device", "machine", "threads", "versions", "host", "pid",
    "commit", "estimate", "sittings", "processes", "environment", "words", "resume",
}  # fmt: skip
"""Fields of records that differ between runs: when, where and how, not what."""


@dataclass(frozen=True)
class Job:
    """Commands that together make one result."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    """Run one after the other in the folder of the job."""
    resumed: Callable[[Sequence[str]], Sequence[str]] = list
    """The command that goes on where one was stopped."""


def with_resume(command: Sequence[str]) -> Sequence[str]:
    return command if command[0] != "evaluate" else [*command, "--resume"]


def resumed_training(command: Sequence[str]) -> Sequence[str]:
    return ["train", "--resume", "--out", "out"]


TRAIN = shlex.split(
    "train udp --data digits --net mlp --batch-size 64 --eps 0.15 --step-size 0.03 --steps 5 "
    "--checkpoint-minutes 0.001 --device cpu --epochs 8 --evaluate-examples 64 --out out"
)
EVALUATE = shlex.split(
    "evaluate model --attacks apgd-ce20 square400 --eps 0.1 --examples 200 --batch-size 16 --device cpu"
)
JOBS = [
    Job("training", (tuple(TRAIN),), resumed_training),
    Job("training on two processes", ((*TRAIN, "--devices", "2"),), resumed_training),
    Job("evaluation by two processes", ((*EVALUATE, "--processes", "2", "--out", "out/aa.json"),), with_resume),
    Job(
        "shards and their merging",
        (
            *((*EVALUATE, "--shard", f"{i}/3", "--out", f"out/{i}.json") for i in (1, 2, 3)),
            ("merge", "out/1.json", "out/2.json", "out/3.json", "--out", "out/aa.json"),
        ),
        with_resume,
    ),
    Job("a sweep", (("reproduce", "toy", "--workers", "2", "--out", "out"),)),
    Job("a sweep on Ray", (("reproduce", "toy", "--workers", "2", "--address", "local", "--out", "out"),)),
]
BLOWS = ("SIGKILL", "SIGTERM", "SIGINT", "full disk", "lost worker", "vanished folder")


@dataclass
class Ended:
    """How a command ended."""

    code: int
    output: str
    survivors: list[str] = field(default_factory=list)
    """Processes that were alive too long after it."""


def environment(folder: Path) -> dict[str, str]:
    (folder / "tmp").mkdir(exist_ok=True)
    own = {
        "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1", "COLUMNS": "200", "RAY_TMPDIR": "/tmp",
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), *map(str, _sources())])),
    }  # fmt: skip
    return {**os.environ, **own}


def _sources() -> list[Path]:
    return [HERE.parents[1] / "src"]


def begin(command: Sequence[str], folder: Path, limit: int | None = None) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own; `limit`: bytes that a file may have."""
    start = [sys.executable, str(HERE / "toy.py")] if command[0] == "reproduce" else RUN

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with (folder / "said.txt").open("ab") as output:
        process = subprocess.Popen(
            [*start, *command], cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL, stdout=output,
            stderr=output, start_new_session=True, preexec_fn=limited if limit is not None else None,
        )  # fmt: skip
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, fresh = [], [pid]
    while fresh:
        fresh = [child for child, parent in parents.items() if parent in fresh]
        found += fresh
    return found


def what_runs(pid: int) -> str:
    """The command of a process; empty if it has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
    return "" if state in "ZX" else words


def workers(pid: int) -> list[int]:
    """Those descendants that do the work: python processes, and Ray's workers, but nothing of Ray's own."""
    own = ("ray::", "equipoise", "multiprocessing", "toy.py")
    foreign = (*DAEMONS, "resource_tracker")
    texts = {child: what_runs(child) for child in descendants(pid)}
    return [c for c, t in texts.items() if any(w in t for w in own) and not any(w in t for w in foreign)]


def finish(process: subprocess.Popen[bytes], folder: Path, children: Callable[[], list[int]]) -> Ended:
    """Wait for a command's end, and for that of its children."""
    seen: set[int] = set()
    end = time.monotonic() + LONG
    while process.poll() is None and time.monotonic() < end:
        seen |= set(children())
        time.sleep(0.05)
    hung = process.poll() is None
    if hung:  # its group, as it would ignore what is gentler
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    begin = time.monotonic()
    while alive := [text for text in map(what_runs, seen) if text]:
        of_ray = all(any(word in text for word in DAEMONS) for text in alive)
        if time.monotonic() > begin + (LATER if of_ray else SOON):
            break
        time.sleep(0.05)
    survivors = [text for text in map(what_runs, seen) if text]
    for pid in seen:
        if what_runs(pid):
            os.kill(pid, signal.SIGKILL)
    output = (folder / "said.txt").read_text(errors="replace")
    (folder / "said.txt").unlink()
    return Ended(process.returncode, output + ("\nit hung" if hung else ""), survivors)


def run(command: Sequence[str], folder: Path) -> Ended:
    process = begin(command, folder)
    return finish(process, folder, lambda: descendants(process.pid))


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of `size` bytes as the results' folder; False where there cannot be one."""
    disk_folder = folder / "disk"
    disk_folder.mkdir()
    mounted = os.geteuid() == 0 and _mount(disk_folder, size)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(disk_folder)], check=True)
        disk_folder.rmdir()


def _mount(disk_folder: Path, size: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk_folder)]
    return (
        shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def strike(blow: str, command: Sequence[str], folder: Path, after: float, rng: random.Random) -> Ended:
    """Start a command and disturb it once."""
    out = folder / "out"
    if blow == "full disk":
        used = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) if out.exists() else 0
        with small_disk(folder, max(used, 4096) + rng.randrange(1000, 300_000)) as mounted:
            if not mounted:
                process = begin(command, folder, limit=rng.randrange(1000, 60_000))
                return finish(process, folder, lambda: descendants(process.pid))
            disk = folder / "disk" / "out"
            if out.exists():
                shutil.copytree(out, disk, symlinks=True)
                shutil.rmtree(out)
            else:
                disk.mkdir()
            out.symlink_to(disk, target_is_directory=True)
            ended = run(command, folder)
            out.unlink()
            shutil.copytree(disk, out, symlinks=True)
            if not any(out.iterdir()):
                out.rmdir()
            return ended
    process = begin(command, folder)
    end = time.monotonic() + after
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    children = set(descendants(process.pid))
    if process.poll() is None:
        if blow == "lost worker":
            able = workers(process.pid)
            if able:
                _kill(rng.choice(sorted(able)), signal.SIGKILL)
        elif blow == "vanished folder":
            if out.exists():
                out.rename(folder / "gone")
                shutil.rmtree(folder / "gone", ignore_errors=True)
        else:
            _kill(process.pid, getattr(signal, blow))
    return finish(process, folder, lambda: sorted(children | set(descendants(process.pid))))


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def essence(value: Any) -> Any:
    """A record without its volatile fields."""
    if isinstance(value, dict):
        return {k: essence(v) for k, v in value.items() if k not in VOLATILE}
    return [essence(v) for v in value] if isinstance(value, list) else value


def contents(path: Path) -> str:
    """The content of a file without times and machine."""
    if path.suffix == ".json":
        return json.dumps(essence(json.loads(path.read_text())), sort_keys=True)
    if path.suffix == ".jsonl":
        return "\n".join(
            json.dumps(essence(json.loads(line)), sort_keys=True) for line in path.read_text().splitlines()
        )
    if path.name == "checkpoint.safetensors":
        with safe_open(path, "np") as tensors:
            told = json.dumps(essence(json.loads(tensors.metadata()["state"])), sort_keys=True)
            arrays = {name: tensors.get_tensor(name) for name in sorted(tensors.keys())}
        return told + hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return " ".join(f"{k}:{hashlib.sha256(arrays[k].tobytes()).hexdigest()}" for k in sorted(arrays))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def results(folder: Path) -> dict[str, str]:
    """Every file that a job wrote, and its content."""
    own = ("model", "tmp", "said.txt")
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and f.relative_to(folder).parts[0] not in own]
    return {str(f.relative_to(folder)): contents(f) for f in files}


@dataclass(frozen=True)
class Undisturbed:
    """What a job does when left alone."""

    files: dict[str, str]
    seconds: tuple[float, ...]
    """Of each command."""


def prepare(folder: Path) -> None:
    """A model to evaluate, at `model`."""
    command = [*TRAIN[:-6], "--epochs", "2", "--evaluate-examples", "0", "--out", "model"]
    ended = run(command, folder)
    assert ended.code == 0, ended.output


def fresh(base: Path, job: Job, name: str) -> Path:
    folder = base / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if any("model" in command for command in job.commands):
        shutil.copytree(base / "model", folder / "model")
    if job.name.startswith(("evaluation", "shards")):
        (folder / "out").mkdir()
    return folder


def undisturbed(base: Path, job: Job) -> Undisturbed:
    folder, seconds = fresh(base, job, "undisturbed"), []
    for command in job.commands:
        start = time.monotonic()
        ended = run(command, folder)
        assert ended.code == 0 and not ended.survivors, (job.name, ended)
        seconds.append(time.monotonic() - start)
    return Undisturbed(results(folder), tuple(seconds))


def trial(base: Path, job: Job, expected: Undisturbed, blows: Sequence[str], rng: random.Random) -> list[str]:
    """One round: the job, its disturbances, its end. Returns the problems."""
    folder, problems, blows = fresh(base, job, "disturbed"), [], list(blows)
    struck = rng.choices(range(len(job.commands)), expected.seconds, k=len(blows))
    for number, command in enumerate(job.commands):
        next_command: Sequence[str] = command
        for blow, target in zip(blows, struck, strict=True):
            if target != number:
                continue
            ended = strike(blow, next_command, folder, rng.uniform(0.2, 1.0) * expected.seconds[number], rng)
            problems += complaints(blow, ended)
            if blow == "vanished folder" and not (folder / "out").exists():
                if job.name.startswith(("evaluation", "shards")):
                    (folder / "out").mkdir()
                if ended.code != 0 and number > 0:  # what earlier commands wrote is gone too
                    for earlier in job.commands[:number]:
                        run(earlier, folder)
            next_command = job.resumed(command) if begun(folder, command) else command
        ended = run(next_command, folder)
        if ended.code != 0 and "already" not in ended.output:
            problems.append(f"could not be continued, exit code {ended.code}: {ended.output[-600:]}")
        problems += complaints("nothing", ended)
    problems += differences(expected.files, results(folder))
    others = ("ray", "torchinductor")  # what these leave is not ours
    problems += [f"left behind: {f.name}" for f in (folder / "tmp").iterdir() if not f.name.startswith(others)]
    return problems


def begun(folder: Path, command: Sequence[str]) -> bool:
    """Whether there is something to continue."""
    return command[0] != "train" or (folder / "out" / "run.json").exists()


def complaints(blow: str, ended: Ended) -> list[str]:
    """Problems in how a command ended."""
    problems = [f"after {blow} still alive: {text[:150]}" for text in ended.survivors]
    if "Traceback" in ended.output or "Fatal Python" in ended.output or "C  [" in ended.output:
        problems.append(f"after {blow} a traceback:\n{ended.output[-1500:]}")
    if "it hung" in ended.output:
        problems.append(f"after {blow} it hung")
    allowed = {
        "SIGKILL": (-signal.SIGKILL, 0), "SIGTERM": (-signal.SIGTERM, 128 + signal.SIGTERM, 0),
        "SIGINT": (130, -signal.SIGINT, 0), "nothing": (ended.code,),
    }.get(blow, (0, 1, 2))  # fmt: skip
    if ended.code not in allowed:
        problems.append(f"after {blow} exit code {ended.code}: {ended.output[-300:]}")
    return problems


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    problems = [f"missing: {name}" for name in expected.keys() - found.keys()]
    problems += [f"left behind: {name}" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        if expected[name] != found[name]:
            at = next((i for i, (a, b) in enumerate(zip(expected[name], found[name], strict=False)) if a != b), 0)
            excerpts = [text[max(at - 60, 0) : at + 60] for text in (expected[name], found[name])]
            problems.append(f"{name} differs: ...{excerpts[0]}... is now ...{excerpts[1]}...")
    return sorted(problems)


def chaos(base: Path, kills: int, seed: int, jobs: Sequence[Job] = JOBS, blows: Sequence[str] = BLOWS) -> list[str]:
    """Disturb jobs `kills` times. Returns all problems; there should be none."""
    rng, problems = random.Random(seed), []
    prepare(base)
    expected = {job.name: undisturbed(base, job) for job in jobs}
    plan = [(jobs[i % len(jobs)], blows[(i + i // len(jobs)) % len(blows)]) for i in range(kills)]
    done = 0
    while done < kills:
        job, blow = plan[done]
        several = [blow] + ([rng.choice(blows)] if rng.random() < 0.3 and done + 1 < kills else [])
        start = time.monotonic()
        found = trial(base, job, expected[job.name], several, rng)
        problems += [f"{job.name}, {' and '.join(several)} (kill {done}, seed {seed}): {text}" for text in found]
        done += len(several)
        verdict = "as undisturbed" if not found else "WRONG\n  " + "\n  ".join(found)
        print(f"{done:4d}  {job.name}: {', '.join(several)}: {verdict} ({time.monotonic() - start:.0f} s)", flush=True)
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the name of the jobs")
    parser.add_argument("--blow", choices=BLOWS, action="append", help="only these")
    options = parser.parse_args()
    jobs = [job for job in JOBS if options.only in job.name]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as base:
        problems = chaos(Path(base), options.kills, options.seed, jobs, options.blow or BLOWS)
    print(f"{options.kills} kills: {len(problems)} problems" if problems else f"{options.kills} kills: all is well")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
