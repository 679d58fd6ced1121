"""A service in a child process, as a user starts it, on scripted devices."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "example-machine.json"


class Served:
    """A service that runs; ``folder`` has all that it keeps."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        machine: Path = EXAMPLE,
        cadence: str | None = "200ms",
        **variables: str,
    ):
        self.folder = folder
        self.environ = os.environ | {
            "EXO_GPU_FAKE": str(machine),
            "EXO_GPU_STATE": str(folder / "state"),
            "EXO_GPU_REGISTRY": str(folder / "registry.json"),
            "EXO_GPU_PROBES": str(folder / "probes.json"),
            "EXO_GPU_HISTORY": str(folder / "history.sqlite"),
            "EXO_GPU_JOBS": str(folder / "jobs"),
            "EXO_GPU_CONFIG": os.devnull,
            **variables,
        }
        self.lines: list[str] = []
        command = [sys.executable, "-m", "exo.gpu", "serve", "--port", "0"]
        if cadence is not None:
            command += ["--every", cadence]
        self.process = subprocess.Popen(
            [*command, *options], env=self.environ, stderr=subprocess.PIPE, text=True
        )
        self.greeting = self._read_until("serving ")
        match = re.search(r"serving (http://\S+?)/(#token=(\S+))?$", self.greeting)
        assert match is not None, self.greeting
        self.url, self.token = match[1].replace("0.0.0.0", "127.0.0.1"), match[3]

    def _read_until(self, mark: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if mark in line:
                return line.rstrip()
        raise AssertionError("\n".join(self.lines))

    def read_until(self, mark: str) -> str:
        """The next line on standard error with that in it."""
        return self._read_until(mark)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, **options)

    def until_ready(self, client: httpx.Client) -> None:
        """Wait for a picture of the machine in which every device was asked."""
        while client.get("/-/ready").status_code != 200:
            assert self.process.poll() is None
        while any(
            one["sample"] is None and not one["sample_failure"]
            for one in client.get("/api/v1/devices").json()["devices"]
        ):
            assert self.process.poll() is None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        rest = self.process.communicate(timeout=60)[1]
        self.lines += rest.splitlines()
        return self.process.returncode
