"""How a worker tells that the system ended a trainer for want of memory; the kernel's counters are files here."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from backends.devices import GIB
from jobs.events import Checkpointed
from workers import memory_kill
from workers.memory_kill import KillWatch
from workers.process import LineTail
from workers.watch import Limits, Watch

KILLED = -signal.SIGKILL


@pytest.fixture
def counters(tmp_path, monkeypatch):
    """Files as the kernel shows them: a container's, and the machine's."""
    container, machine = tmp_path / "memory.events", tmp_path / "vmstat"
    container.write_text("low 0\nhigh 3\nmax 7\noom 0\noom_kill 0\noom_group_kill 0\n")
    machine.write_text("nr_free_pages 12\noom_kill 4\n")
    monkeypatch.setattr(memory_kill, "_COUNTERS", ((container, "oom_kill"), (machine, "oom_kill")))
    return container, machine


@pytest.mark.parametrize("number", [0, 1])
def test_a_counter_of_the_kernel_that_rose_is_a_lack_of_memory(counters, number):
    watch = KillWatch(os.getpid())
    watch.look()
    file = counters[number]
    file.write_text(file.read_text().replace("oom_kill 0", "oom_kill 1").replace("oom_kill 4", "oom_kill 5"))
    assert "for want of memory, while it held" in watch.verdict(KILLED)
    assert watch.verdict(1) == ""
    assert watch.verdict(-signal.SIGTERM) == ""


def test_a_kill_with_memory_to_spare_is_none(counters):
    watch = KillWatch(os.getpid())
    watch.look()
    assert watch.verdict(KILLED) == ""
    for file in counters:
        file.unlink()
    assert watch.verdict(KILLED) == ""


def test_where_the_kernel_does_not_count_a_large_process_on_a_full_machine_tells(counters, monkeypatch):
    for file in counters:
        file.unlink()
    monkeypatch.setattr(memory_kill, "free_ram", lambda: 100_000_000)
    monkeypatch.setattr(memory_kill, "_MUCH", 0.0)
    watch = KillWatch(os.getpid())
    watch.look()
    assert "0.1 GiB were free" in watch.verdict(KILLED)
    monkeypatch.setattr(memory_kill, "_MUCH", 0.9)
    assert watch.verdict(KILLED) == ""
    assert psutil.virtual_memory().total > GIB


def test_a_watch_hands_on_what_became_of_a_killed_trainer_and_which_checkpoint_is_the_best(counters, tmp_path):
    events = tmp_path / "events.jsonl"
    events.write_text(Checkpointed(step=3, path=str(tmp_path), best=True).to_json() + "\n")
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    added = []

    class Trainer:
        pid = process.pid
        events = LineTail(tmp_path / "events.jsonl")
        exit_code = property(lambda _self: process.poll())

        def last_log_lines(self):
            return ""

    class Uploads:
        def add(self, step, folder, *, best):
            added.append((step, best))
            counters[0].write_text("oom_kill 1\n")
            process.kill()
            process.wait()

    limits = Limits(wall_seconds=60, stall_seconds=60, stop_seconds=60)
    end = Watch(Trainer(), lambda: None, Uploads(), limits).until_end(give_up=lambda: False)
    assert end.exit_code == KILLED
    assert end.memory_kill
    assert added == [(3, True)]
