"""Processes that take, hold, wait and give back at random, and one that kills them at random.

Whoever holds or waits appends what it does to one log, in the order in which it happens: a taking
within its transaction, a release before it. So the log shows every over-commitment that was.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

CAPACITY = 3
DEVICES = 2
HERE = Path(__file__)


class Log:
    def __init__(self, folder):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = os.open(Path(folder) / "log", flags, 0o666)

    def write(self, *words):
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


def snapshot_of(leases):
    from exo.gpu.vocabulary.device import GPUDevice
    from exo.gpu.vocabulary.metrics import GPUMetrics
    from exo.gpu.vocabulary.snapshot import DeviceState, Snapshot

    return Snapshot(
        tuple(
            DeviceState(
                device=GPUDevice(
                    device_id=f"cuda:{index}",
                    name="a card",
                    vendor="NVIDIA",
                    backend="cuda",
                    runtime="cuda",
                    hardware_id=f"GPU-{index}",
                    memory_bytes=1000,
                    slots=CAPACITY,
                ),
                sample=GPUMetrics(f"cuda:{index}", timestamp=1.0),
                sample_age_seconds=0.1,
                leases=tuple(one for one in leases if one.device_id == f"cuda:{index}"),
            )
            for index in range(DEVICES)
        )
    )


def logging_desk(folder, log):
    """A desk on a machine without readings, whose takings are logged within the transaction."""
    from exo.gpu.execution.ledger_book import Book
    from exo.gpu.execution.state_directory import StorePlace
    from exo.gpu.nodes.leasing import Eyes, LeaseDesk

    add, dequeue, enqueue = Book.add, Book.dequeue, Book.enqueue

    def logged_add(book, lease, lasts_seconds=None):
        held = add(book, lease, lasts_seconds)
        how = "whole" if lease.exclusive else "slot"
        log.write("took", os.getpid(), held.lease.lease_id, lease.device_id, how)
        return held

    def logged_enqueue(book, request, facts):
        waiter, descriptor = enqueue(book, request, facts)
        log.write("queued", os.getpid(), waiter.waiter_id, "whole" if request.exclusive else "slot")
        return waiter, descriptor

    def logged_dequeue(book, waiter_id):
        if any(one.waiter_id == waiter_id for one in book.waiters):
            log.write("left", os.getpid(), waiter_id)
        dequeue(book, waiter_id)

    Book.add, Book.dequeue, Book.enqueue = logged_add, logged_dequeue, logged_enqueue
    eyes = Eyes(lambda newer: None, snapshot_of, lambda name: None, lambda name: None)
    place = StorePlace(Path(folder) / "store", "chaos", "chaos")
    return LeaseDesk(lambda: place, eyes)


def work(folder, seed):
    """One process: take, hold for a moment, sometimes through a child that outlives it, release."""
    from exo.gpu.vocabulary.request import Request

    lots, log = random.Random(int(seed)), Log(folder)
    desk = logging_desk(folder, log)
    while True:
        # The whole of one card only: with two, the second in the line may wake up first.
        whole = lots.random() < 0.3
        request = Request(exclusive=whole, devices=("cuda:0",) if whole else ())
        grant = desk.acquire(request, wait_seconds=lots.choice([0.0, 5.0, 30.0]))
        for lease_id in grant.lease_ids:
            if lots.random() < 0.2:
                leave_to_a_child(desk, lease_id, folder, lots.random() / 20)
                continue
            time.sleep(lots.random() / 50)
            log.write("released", os.getpid(), lease_id)
            desk.release(lease_id)


def leave_to_a_child(desk, lease_id, folder, seconds):
    """The child has the lock; whatever becomes of us, it works on, and says when it is done."""
    held = desk.held.pop(lease_id)
    log = f"{folder}/log"
    # It says itself that it has the lease: we may be killed before there is a child.
    script = (
        f'echo "handed {os.getpid()} {lease_id}" >> {log}; sleep {seconds}; '
        f'echo "released 0 {lease_id}" >> {log}'
    )
    subprocess.Popen(["sh", "-c", script], pass_fds=(held.lock_fd,), start_new_session=True)
    held.release()


def run(folder, seconds, workers=10, seed=0):
    """Let them work so long and kill one after another; the log as it was in the end."""
    lots, log = random.Random(seed), Log(folder)
    children = [start(folder, seed + number) for number in range(workers)]
    ends = time.monotonic() + seconds
    kills = 0
    while time.monotonic() < ends:
        time.sleep(lots.random() / 5)
        victim = lots.randrange(workers)
        end(children[victim], log)
        kills += 1
        children[victim] = start(folder, seed + workers + kills)
    for child in children:
        end(child, log)
    return (Path(folder) / "log").read_text().splitlines(), kills


def start(folder, seed):
    words = [sys.executable, str(HERE), str(folder), str(seed)]
    return subprocess.Popen(words, start_new_session=True)


def end(child, log):
    """Logged before it happens: what a dying process still held may be taken from then on."""
    log.write("killed", child.pid)
    child.send_signal(signal.SIGKILL)
    child.wait()


def judge(lines):
    """What went wrong by the log, and how much happened."""
    held, dead, handed, faults, counts = {}, set(), set(), [], Counter()
    for line in lines:
        event, *words = line.split()
        counts[event] += 1
        if event == "took":
            pid, lease_id, device, how = words
            if pid not in dead:
                held[lease_id] = (pid, device, how)
                there = [one[2] for one in held.values() if one[1] == device]
                if len(there) > CAPACITY or ("whole" in there and len(there) > 1):
                    faults.append(f"{device} holds {there} at {line!r}")
        elif event == "released":
            held.pop(words[1], None)
        elif event == "handed":
            handed.add(words[1])
        elif event == "killed":
            dead.add(words[0])
            held = {name: one for name, one in held.items() if one[0] != words[0] or name in handed}
    return faults, counts


def pushed_in(lines):
    """Those who asked for the whole of cuda:0 after another such one, and got it before it.

    Only of two that both lived to be served.
    """
    queued, served, order = {}, {}, []
    for number, line in enumerate(lines):
        event, *words = line.split()
        if event == "queued" and words[2] == "whole":
            queued[words[1]] = number
            order.append(words[1])
        elif event == "left" and words[1] in queued:
            took = lines[number - 1].split()
            if took[0] == "took" and took[1] == words[0]:
                served[words[1]] = number
    done = [name for name in order if name in served]
    return [
        (early, late)
        for place, early in enumerate(done)
        for late in done[place + 1 :]
        if served[late] < served[early]
    ]


if __name__ == "__main__":
    work(*sys.argv[1:])
