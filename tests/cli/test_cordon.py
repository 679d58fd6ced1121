"""``exo-gpu cordon``, ``uncordon`` and ``drain``: what people do to keep a device out."""

from __future__ import annotations

import json
import subprocess

import pytest


@pytest.fixture(autouse=True)
def machine(devices):
    """An NVIDIA card, an AMD card and the host."""


def test_a_cordoned_device_is_refused_until_it_is_uncordoned(exo_gpu):
    """Rule: select and run refuse it for now, with the reason, for everybody."""
    done = exo_gpu("cordon", "cuda:0", "--why", "its fan is loud")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("cuda:0 is cordoned by ")
    assert done.stdout.endswith(": its fan is loud\n")
    for command in (("select", "--device", "cuda:0"), ("run", "--device", "cuda:0", "--", "true")):
        refused = exo_gpu(*command)
        assert refused.returncode == 75
        assert "its fan is loud" in refused.stderr
    assert exo_gpu("select").stdout == "rocm:0\n"
    mapped = exo_gpu("map", "--device", "cuda:0", "echo", ":::", "1")
    assert (mapped.returncode, mapped.stdout) == (75, "")
    back = exo_gpu("uncordon", "GPU-1111")
    assert back.returncode == 0
    assert "its fan is loud" in back.stdout
    assert exo_gpu("select").stdout == "cuda:0\n"
    assert exo_gpu("uncordon", "cuda:0").stdout == "cuda:0 is not cordoned\n"


def test_devices_and_doctor_show_it(exo_gpu):
    """Rule: within 80 columns, with who, until when and why; in JSON as a value."""
    exo_gpu(
        "cordon", "cuda:0", "--why", "its fan is loud and somebody ordered a new one", "--for", "2h"
    )
    table = exo_gpu("devices").stdout
    assert max(map(len, table.splitlines())) <= 80
    assert table.splitlines()[1].split()[3:5] == ["ok,", "cordoned"]
    assert "until 20" in " ".join(table.split())
    first, second, _ = json.loads(exo_gpu("devices", "--json").stdout)["devices"]
    assert first["cordon"]["until"] == pytest.approx(first["cordon"]["since"] + 7200)
    assert second["cordon"] is None
    assert "cordon" in exo_gpu("doctor").stdout
    (found,) = json.loads(exo_gpu("doctor", "--json").stdout)["cordons"]["in_force"]
    assert found == first["cordon"]


@pytest.mark.parametrize("command", ["cordon", "uncordon", "drain"])
def test_a_device_that_is_not_here_is_never(exo_gpu, command):
    """Rule: 69, and the near spelling."""
    why = ["--why", "x"] if command == "cordon" else []
    done = exo_gpu(command, "cuda:1", *why)
    assert (done.returncode, done.stdout) == (69, "")
    assert "did you mean 'cuda:0'" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("cordon", "cuda:0"),
        ("cordon", "cuda:0", "--why", ""),
        ("cordon", "cuda:0", "--why", "x", "--for", "3y"),
        ("cordon", "cuda:0", "--why", "x", "--for", "0"),
        ("drain", "cuda:0", "--wait", "soon"),
        ("drain", "cuda:0", "--wait", "1s", "--no-wait"),
        ("uncordon",),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(exo_gpu, arguments):
    """Rule: usage, and no cordon."""
    done = exo_gpu(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert json.loads(exo_gpu("doctor", "--json").stdout)["cordons"]["in_force"] == []


def test_json_is_one_object_each(exo_gpu):
    """Rule: programs read what was set, lifted and drained."""
    kept = json.loads(exo_gpu("cordon", "cuda:0", "--why", "x", "--json").stdout)
    assert (kept["device_id"], kept["why"], kept["until"]) == ("cuda:0", "x", None)
    lifted = json.loads(exo_gpu("uncordon", "cuda:0", "--json").stdout)
    assert lifted == {"device": "cuda:0", "lifted": kept}
    again = json.loads(exo_gpu("uncordon", "cuda:0", "--json").stdout)
    assert again == {"device": "cuda:0", "lifted": None}
    drained = json.loads(exo_gpu("drain", "cuda:0", "--json").stdout)
    assert (drained["drained"], drained["leases"]) == (True, [])
    assert drained["cordon"]["draining"] is False


def test_drain_waits_for_a_lease_that_a_process_holds(exo_gpu, command_line):
    """Rule: it says whom it waits for, ends when that ends, and leaves the device cordoned."""
    run = command_line("run", "--device", "cuda:0", "--", "sh", "-c", "echo running; read answer")
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "running\n"
        too_long = exo_gpu("drain", "cuda:0", "--wait", "100ms")
        assert too_long.returncode == 75
        assert "waiting for 1 lease: sh -c" in too_long.stderr
        assert "it stays cordoned" in too_long.stderr
        assert "draining" in exo_gpu("devices").stdout
        left = exo_gpu("drain", "cuda:0", "--no-wait", "--json")
        assert left.returncode == 0
        assert json.loads(left.stdout)["drained"] is False
        drain = command_line("drain", "cuda:0", "--why", "upgrade")
        with subprocess.Popen(
            drain, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as waits:
            assert waits.stderr is not None
            assert "waiting for 1 lease" in waits.stderr.readline()
            assert waits.poll() is None
            held.communicate("\n")
            out, _ = waits.communicate(timeout=60)
    assert waits.returncode == 0
    assert out.startswith("cuda:0 is cordoned by ")
    assert out.endswith(": upgrade\n")
    assert exo_gpu("select", "--device", "cuda:0").returncode == 75


def test_a_drain_whose_cordon_is_lifted_says_so(exo_gpu, command_line):
    """Rule: 75, since the device takes new work again."""
    run = command_line("run", "--device", "cuda:0", "--", "sh", "-c", "echo running; read answer")
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        held.stdout.readline()
        drain = command_line("drain", "cuda:0")
        with subprocess.Popen(drain, stderr=subprocess.PIPE, text=True) as waits:
            assert waits.stderr is not None
            waits.stderr.readline()
            exo_gpu("uncordon", "cuda:0")
            _, err = waits.communicate(timeout=60)
        held.communicate("\n")
    assert waits.returncode == 75
    assert "somebody lifted the cordon" in err


def test_a_damaged_store_is_named_and_hides_no_device(exo_gpu, state_folder):
    """Rule: devices and doctor still list; what would decide says which file and what to do."""
    (state_folder / "cordons").mkdir()
    (state_folder / "cordons" / "cordons.sqlite").write_bytes(b"garbage" * 1000)
    listed = exo_gpu("devices")
    assert listed.returncode == 0
    assert "cuda:0" in listed.stdout
    assert "cordons.sqlite" in listed.stderr
    report = exo_gpu("doctor")
    assert report.returncode == 0
    assert " ".join(report.stdout.split()).count("removing the file") == 1
    for command in (("select",), ("run", "--", "true"), ("cordon", "cuda:0", "--why", "x")):
        refused = exo_gpu(*command)
        assert refused.returncode == 1
        assert "cordons.sqlite" in refused.stderr


def test_a_probe_leaves_a_cordoned_device_alone(exo_gpu):
    """Rule: not now, with the reason; a forced one measures it, and a person's cordon stays."""
    exo_gpu("cordon", "cuda:0", "--why", "its fan is loud")
    refused = exo_gpu("probe", "--device", "cuda:0")
    assert refused.returncode == 75
    assert "its fan is loud" in " ".join(refused.stdout.split())
    forced = json.loads(exo_gpu("probe", "--device", "cuda:0", "--force", "--json").stdout)
    assert [one["device_id"] for one in forced["probes"]] == ["cuda:0"]
    assert forced["lifted"] == []
    assert exo_gpu("select", "--device", "cuda:0").returncode == 75
