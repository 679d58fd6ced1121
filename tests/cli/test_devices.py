"""``exo-gpu devices``: every device, with a reason for whatever is not known."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import termios

from exo.gpu.vocabulary.device import GPUDevice

GONE = {
    "device_id": "xpu:0",
    "name": "Intel Arc A770",
    "vendor": "Intel",
    "backend": "fake",
    "runtime": "xpu",
    "memory_bytes": 16 * 2**30,
    "fail": "the driver is gone",
}


def test_table_has_every_device_and_fits_a_pipe(devices, exo_gpu):
    """Rule: without a terminal the table is 80 columns wide and complete."""
    done = exo_gpu("devices")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == [
        "ID",
        "CLASS",
        "RUNTIME",
        "HEALTH",
        "MEMORY",
        "UTIL",
        "TEMP",
        "POWER",
    ]
    assert lines[1].split() == [
        "cuda:0",
        "hardware",
        "cuda",
        "ok",
        "1.0/24.0",
        "GiB",
        "3%",
        "41C",
        "31W",
    ]
    assert lines[2].startswith("    NVIDIA GeForce RTX 4090; driver 550.54.14;")
    assert lines[3].split() == [
        "rocm:0",
        "hardware",
        "rocm",
        "ok",
        "16.0/20.0",
        "GiB",
        "-",
        "-",
        "-",
    ]
    assert lines[5].split() == ["cpu:0", "host", "cpu", "ok", "2.0/16.0", "GiB", "-", "-", "-"]


def test_json_is_one_object_with_everything(script, exo_gpu):
    """Rule: JSON gives all fields of a device, its sample or the reason, its leases and support."""
    script(
        {
            "device_id": "cuda:0",
            "name": "RTX",
            "vendor": "NVIDIA",
            "backend": "fake",
            "runtime": "cuda",
            "sample": {"compute_utilization_percent": 0},
        },
        GONE,
    )
    report = json.loads(exo_gpu("devices", "--json").stdout)
    assert set(report) == {"devices", "findings", "missing", "links"}
    well, gone = report["devices"]
    assert set(GPUDevice.__struct_fields__) < set(well)
    assert well["sample"]["compute_utilization_percent"] == 0
    assert well["sample"]["power_watts"] is None
    assert well["sample"]["missing_reasons"]["power_watts"]
    assert well["sample_failure"] is None
    assert well["leases"] == []
    assert gone["sample"] is None
    assert "the driver is gone" in gone["sample_failure"]
    assert [finding["backend"] for finding in report["findings"]] == ["fake"]


def test_what_fails_hides_nothing_else(script, devices, exo_gpu):
    """Rule: a device that cannot be read is listed with the reason, and so are the others."""
    script(GONE, GONE | {"device_id": "xpu:1", "fail": ""})
    done = exo_gpu("devices")
    assert done.returncode == 0
    assert "the driver is gone" in " ".join(done.stdout.split())
    assert "xpu:1" in done.stdout


def test_without_a_device_the_reasons_are_given(script, exo_gpu):
    """Rule: an empty list is an answer, with the reasons."""
    script(fail="no scripted driver")
    done = exo_gpu("devices")
    assert done.returncode == 0
    assert done.stdout == "No device was found.\nfake: no scripted driver\n"


def test_leases_are_counted_while_they_live(devices, exo_gpu, command_line):
    """Rule: a device under a running command shows one lease, and none afterwards."""
    run = command_line("run", "--", "sh", "-c", "echo running; read answer")
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "running\n"
        during = json.loads(exo_gpu("devices", "--json").stdout)["devices"][0]
        table = exo_gpu("devices").stdout
        held.communicate("go\n")
    assert [lease["device_id"] for lease in during["leases"]] == ["cuda:0"]
    assert "1 lease" in " ".join(table.split())
    after = json.loads(exo_gpu("devices", "--json").stdout)["devices"][0]
    assert after["leases"] == []


def test_a_narrow_terminal_changes_nothing(devices, exo_gpu, command_line):
    """Rule: people see on a terminal what a pipe gives."""
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run(command_line("devices"), stdout=terminal, stderr=terminal, check=True)
    os.close(terminal)
    shown = os.read(main_end, 65536).decode().replace("\r\n", "\n")
    os.close(main_end)
    assert shown == exo_gpu("devices").stdout


def test_devices_are_listed_where_the_lease_store_cannot_be_used(
    devices, exo_gpu, monkeypatch, tmp_path
):
    """Rule: seeing the devices needs no store; that the leases are not shown is said."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXO_GPU_STATE", str(tmp_path / "file"))
    done = exo_gpu("devices")
    assert done.returncode == 0
    assert "cuda:0" in done.stdout
    assert "leases and cordons are not shown" in done.stderr


def test_a_missing_device_is_shown_until_it_is_forgotten(remembered, exo_gpu):
    """Rule: what was here before is shown with its name, when it was seen, and why it is not."""
    done = exo_gpu("devices")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert "Missing: cuda:7 (NVIDIA Museum Piece), last seen 2020-09-1" in text
    (missing,) = json.loads(exo_gpu("devices", "--json").stdout)["missing"]
    assert missing["device"]["device_id"] == "cuda:7"
    assert missing["last_seen"] == 1_600_000_000
    assert missing["reason"]
    refused = exo_gpu("devices", "--forget", "cuda:9")
    assert refused.returncode != 0
    assert "missing: cuda:7" in refused.stderr
    forgotten = exo_gpu("devices", "--forget", "GPU-0123")
    # On a crowded machine a slow driver may be told of before it.
    last = forgotten.stderr.splitlines()[-1]
    assert (forgotten.returncode, last) == (0, "exo-gpu: forgotten: cuda:7")
    assert "Missing" not in forgotten.stdout
    assert json.loads(exo_gpu("devices", "--json").stdout)["missing"] == []


def test_a_refresh_asks_the_drivers_again(remembered, exo_gpu):
    """Rule: what the drivers said before is used, unless somebody asks for a new answer."""
    answers = {"vulkan": {"some environment": "an answer that no driver gave"}}
    kept = json.loads(remembered.read_text()) | {"answers": answers}
    remembered.write_text(json.dumps(kept))
    assert exo_gpu("devices").returncode == 0
    assert "some environment" in json.loads(remembered.read_text())["answers"]["vulkan"]
    assert exo_gpu("devices", "--refresh").returncode == 0
    assert "some environment" not in json.loads(remembered.read_text())["answers"]["vulkan"]
