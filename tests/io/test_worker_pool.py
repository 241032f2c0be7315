"""Worker processes: cancelled, killed, orphaned, closed, and started from a script without a guard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import worker_calls
from flux_async import CheckFailed, ClientClosed, ImageChecks, InvalidInput
from flux_async.verification.machine import default_workers, usable_cores, usable_memory
from flux_async.verification.worker_pool import WorkerEnded, WorkerPool


def is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text("ascii").rpartition(")")[2].split()[0] != "Z"


async def until(condition) -> None:
    """Wait until a condition holds."""
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.02)


async def test_calls_share_the_workers_that_the_first_started() -> None:
    """No process before the first call; later calls use the same one; all end with the pool."""
    async with WorkerPool(1) as pool:
        first = await pool.run(os.getpid)
        assert first != os.getpid()
        assert await pool.run(os.getpid) == first
        assert is_running(first)
    assert not is_running(first)


async def test_values_errors_and_output_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are raised as they are, unpicklable ones by their words; prints do no harm; the key stays."""
    monkeypatch.setenv("KIE_API_KEY", "secret")
    async with WorkerPool(1) as pool:
        with pytest.raises(ValueError, match="invalid literal"):
            await pool.run(int, "x")
        with pytest.raises(RuntimeError, match="Unpicklable: one two"):
            await pool.run(worker_calls.fail)
        assert await pool.run(worker_calls.chatter, "word" * 100_000) == "word" * 100_000
        assert await pool.run(os.getenv, "KIE_API_KEY") is None
        assert await pool.run(os.getenv, "OMP_NUM_THREADS") == "1"


async def test_a_killed_worker_is_replaced_and_its_call_made_again(tmp_path: Path) -> None:
    """Also where it dies idle; a call that kills each of three workers fails, and others do not notice."""
    async with WorkerPool(2) as pool:
        await pool.run(worker_calls.end_once, tmp_path)
        idle = await pool.run(os.getpid)
        os.kill(idle, signal.SIGKILL)
        assert await pool.run(os.getpid) != idle
        pids: list[int] = []

        async def meet() -> None:
            pids.append(await pool.run(worker_calls.meet, tmp_path, 1))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meet)
            with pytest.raises(WorkerEnded, match="killed by SIGKILL"):
                await pool.run(worker_calls.end)
        assert len(pids) == 1


async def test_calls_run_at_the_same_time_and_no_more_than_there_are_workers(tmp_path: Path) -> None:
    """Two calls meet in two processes; a third one waits for a worker."""
    pids: set[int] = set()
    async with WorkerPool(2) as pool:

        async def meet() -> None:
            pids.add(await pool.run(worker_calls.meet, tmp_path, 2))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meet)
            tasks.start_soon(meet)
        assert len(pids) == 2
        assert {await pool.run(os.getpid) for _ in range(3)} <= pids


async def test_a_cancelled_call_ends_its_worker_and_the_next_gets_another(tmp_path: Path) -> None:
    """Native code cannot be interrupted; nothing of the call goes on."""
    async with WorkerPool(1) as pool:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.run, worker_calls.stay, tmp_path)
            await until((tmp_path / "pid").exists)
            tasks.cancel_scope.cancel()
        ended = int((tmp_path / "pid").read_text("ascii"))
        assert not is_running(ended)
        assert await pool.run(os.getpid) != ended


async def test_closing_ends_running_calls(tmp_path: Path) -> None:
    """They raise ClientClosed, as every later call does."""
    pool = WorkerPool(1)

    async def stay() -> None:
        with pytest.raises(ClientClosed):
            await pool.run(worker_calls.stay, tmp_path)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stay)
        await until((tmp_path / "pid").exists)
        await pool.aclose()
    with pytest.raises(ClientClosed):
        await pool.run(os.getpid)


SCRIPT = """
import sys, anyio, worker_calls
from pathlib import Path
from flux_async.verification.worker_pool import WorkerPool

async def main():
    with open("runs", "a") as runs:
        runs.write("run\\n")
    async with WorkerPool(1) as pool:
        await pool.run(getattr(worker_calls, sys.argv[1]), Path.cwd())

anyio.run(main)
"""


def started(tmp_path: Path, call: str) -> subprocess.Popen[bytes]:
    """Start a script that has a worker make a call; it has no ``if __name__ == "__main__"``."""
    (tmp_path / "script.py").write_text(SCRIPT, "utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "script.py", call], cwd=tmp_path, env=environment)


async def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    """Even in the middle of a call that never returns. The script's own code ran once."""
    with started(tmp_path, "stay") as parent:
        await until((tmp_path / "pid").exists)
        parent.kill()
        parent.wait()
    worker = int((tmp_path / "pid").read_text("ascii"))
    await until(lambda: not is_running(worker))
    assert (tmp_path / "runs").read_text("ascii") == "run\n"


async def test_checks_of_missing_files_raise_in_the_caller() -> None:
    """The errors of the functions arrive as themselves; no number of workers below 1 is accepted."""
    with pytest.raises(InvalidInput, match="0 is no number of workers"):
        ImageChecks(workers=0)
    async with ImageChecks(workers=1) as checks:
        assert checks.workers == 1
        with pytest.raises(InvalidInput, match="original image"):
            await checks.verify("missing.png", b"")
        with pytest.raises(InvalidInput, match="result image"):
            await checks.preserve(b"", Path("missing.png"))
        with pytest.raises(InvalidInput, match="cannot be used"):
            await checks.has_text(memoryview(b"no image"))


async def test_an_image_that_kills_every_worker_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names how they ended."""
    monkeypatch.setattr("flux_async.verification.checks.has_text", worker_calls.end_for)
    async with ImageChecks(workers=1) as checks:
        with pytest.raises(CheckFailed, match=r"ended 3 times \(killed by SIGKILL\).*fewer workers"):
            await checks.has_text(b"")


@pytest.mark.parametrize(
    ("cpu", "memory", "workers"),
    [("100000 100000\n", "max\n", 1), ("50000 100000\n", "max\n", 1), ("max 100000\n", "1000000000\n", 1)],
    ids=["one core", "half a core", "one gigabyte"],
)
def test_limits_of_a_container(tmp_path: Path, cpu: str, memory: str, workers: int) -> None:
    """Its quota of cores and its memory limit the workers; there is always one."""
    (tmp_path / "cpu.max").write_text(cpu, "ascii")
    (tmp_path / "memory.max").write_text(memory, "ascii")
    assert default_workers(tmp_path) == workers


def test_without_a_container_the_machine_counts(tmp_path: Path) -> None:
    """Cores and memory of the machine; no files of a container's limits."""
    assert 1 <= default_workers(tmp_path) <= usable_cores(tmp_path) <= (os.cpu_count() or 1)
    assert usable_memory(tmp_path) > 100e6
