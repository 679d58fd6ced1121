"""Importing has no effect: no file, no environment, no process, no thread, no logging set up."""

import json
import os
import pkgutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Slow to load (SQLite and anyio apart: those who open a database or wait load them).
HEAVY = {
    "cloudpickle",
    "cuda",
    "highspy",
    "litestar",
    "matplotlib",
    "numpy",
    "psutil",
    "pynvml",
    "ray",
    "rich",
    "textual",
    "uvicorn",
    "vulkan",
    "wgpu",
}

# Modules that one command alone loads may load what that command cannot do without.
OWN = {
    f"exo.gpu.cli.top.{name}": {"rich", "textual"}
    for name in ("app", "colours", "device_table", "history", "occupants", "pages")
}

# These are made of columns. Nothing that is imported at the start of a program imports them, so
# that NumPy is loaded by those who use columns; its own effects are none of ours.
COLUMNS = {
    f"exo.gpu.telemetry.table.{name}"
    for name in (
        "batches",
        "columns",
        "groups",
        "history",
        "packed",
        "table",
        "totals",
        "windows",
    )
} | {
    f"exo.gpu.scheduling.{name}"
    for name in (
        "assignment",
        "by_cost",
        "constructive",
        "costs",
        "exact",
        "improvement",
        "lots",
        "neighbourhood",
        "relaxation",
        "split",
        "split_advice",
        "split_bounds",
        "split_costs",
        "split_orders",
        "split_placement",
        "split_result",
        "split_search",
    )
}

# The same, of policies over many machines and of what is simulated.
COLUMNS |= {
    f"exo.gpu.{name}"
    for name in (
        "scheduling.device_losses",
        "scheduling.fragmentation",
        "scheduling.gang_assignment",
        "scheduling.machines",
        "scheduling.node_table",
        "scheduling.prediction",
        "scheduling.prediction_relations",
        "scheduling.request_mix",
        "simulation.outcome",
        "simulation.placement",
        "simulation.policies",
        "simulation.replay",
        "simulation.report",
        "simulation.simulator",
        "simulation.study",
        "simulation.traces.openb",
    )
}

# The same, of many machines: what crosses between them is columns and arrays.
COLUMNS |= {
    f"exo.gpu.nodes.{name}"
    for name in (
        "cluster.cluster_node",
        "cluster.member",
        "cluster.membership",
        "cluster.service",
        "cluster.session",
        "cluster.survey",
        "cluster.wire",
        "connecting",
    )
}

# These are made of routes. `exo-gpu serve` alone imports them, in a process that serves.
WEB = {
    f"exo.gpu.service.{name}"
    for name in (
        "access",
        "app",
        "device_routes",
        "plain_routes",
        "problems",
        "server",
        "stream",
        "work_routes",
    )
}
FRAMEWORK = ("litestar", "litestar.openapi.config", "litestar.response.base", "uvicorn", "anyio")

# Watches the interpreter from outside: audit events for files, processes and sockets, and the
# environment's own mapping for who reads it. Prints what happened during the import as JSON.
WATCH = textwrap.dedent(
    """
    import json, logging, os, sys, sysconfig, threading, warnings

    name, source, *loaded_before = sys.argv[1:]
    for one in loaded_before:
        __import__(one)
    libraries = tuple({source, sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()})
    modules_before = set(sys.modules)
    seen = []
    acts = (
        "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn",
        "os.putenv", "os.unsetenv", "os.mkdir", "os.remove", "os.rename", "os.kill",
        "socket.__new__", "sqlite3.connect", "ctypes.dlopen", "_thread.start_new_thread", "_thread.start_joinable_thread",
    )

    def audit(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            ours = isinstance(path, str) and path.startswith(libraries)
            if writes and not str(path).split("/")[-2:-1] == ["__pycache__"] or not ours:
                seen.append(f"open {path!r} {mode}")
        elif event in acts and arguments != (None,):  # ctypes opens its own interpreter
            seen.append(f"{event} {arguments!r}")

    def reader():
        frame = sys._getframe(2)
        while frame and frame.f_globals.get("__name__") in ("os", "collections.abc", "_collections_abc"):
            frame = frame.f_back
        return frame.f_globals.get("__name__", "") if frame else ""

    read = os._Environ.__getitem__
    def watched(self, key):
        if reader().startswith("exo.gpu"):
            seen.append(f"environment {key}")
        return read(self, key)

    os._Environ.__getitem__ = watched
    sys.addaudithook(audit)
    __import__(name)
    happened = list(seen)
    print(json.dumps({
        "happened": happened,
        "modules": sorted(set(sys.modules) - modules_before),
        "threads": threading.active_count(),
        "handlers": len(logging.getLogger().handlers) + len(logging.getLogger("exo.gpu").handlers),
    }))
    """
)


def modules() -> list[str]:
    """Every module of exo.gpu, itself included."""
    package = str(ROOT / "src" / "exo" / "gpu")
    found = pkgutil.walk_packages([package], prefix="exo.gpu.", onerror=lambda name: None)
    return ["exo.gpu", *sorted(info.name for info in found)]


def watch(name: str, *loaded_before: str) -> dict:
    """What happens when a fresh interpreter imports the module, after those ``loaded_before``."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", WATCH, name, str(ROOT / "src"), *loaded_before],
        env=environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", modules())
def test_importing_a_module_has_no_effect(name: str) -> None:
    """Rule: a module imports on its own; nothing happens but reading code, and nothing slow is loaded."""
    arrays = {"numpy"} if name in COLUMNS else set()
    framework = FRAMEWORK if name in WEB else ()
    found = watch(name, *arrays, *framework)
    assert found["happened"] == []
    heavy = HEAVY - OWN.get(name, set()) - arrays - set(framework)
    assert heavy.isdisjoint(module.partition(".")[0] for module in found["modules"])
    assert found["threads"] == 1
    assert found["handlers"] == 0


def test_the_watch_sees_effects(tmp_path: Path) -> None:
    """Rule: the watch itself is no blind one: a file, a process, a thread and a variable are seen."""
    room = tmp_path / "exo" / "gpu"
    room.mkdir(parents=True)
    (room / "__init__.py").write_text(
        "import os, subprocess, threading\n"
        "os.environ.get('HOME')\n"
        "open(os.devnull).close()\n"
        "subprocess.run(['true'])\n"
        "threading.Thread(target=int).start()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", WATCH, "exo.gpu", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    seen = " ".join(json.loads(done.stdout)["happened"])
    for trace in ("environment HOME", f"open '{os.devnull}'", "subprocess.Popen"):
        assert trace in seen
    if sys.version_info >= (3, 12):  # older interpreters do not audit the start of a thread
        assert "_thread.start_" in seen


def test_front_door_loads_itself_alone() -> None:
    """Rule: ``import exo.gpu`` loads the front door and the standard library, and no room."""
    loaded = watch("exo.gpu")["modules"]
    ours = [name for name in loaded if name.partition(".")[0] == "exo"]
    assert ours == ["exo", "exo.gpu"]
    strangers = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names - {"exo"}
    assert strangers == set()
    heavy = {"asyncio", "concurrent", "ctypes", "email", "importlib.metadata", "multiprocessing"}
    assert heavy.isdisjoint(loaded)
