"""``exo-gpu config show``, and what a configuration does to the commands."""

from __future__ import annotations

import json

from tests.cli.conftest import CUDA


def settings(done):
    return {one["key"]: one for one in json.loads(done.stdout)["settings"]}


def test_every_setting_has_its_source(devices, exo_gpu, tmp_path):
    """Rule: defaults, the file and the environment are told apart; a device shows what was set."""
    path = tmp_path / "config.toml"
    path.write_text("[device.'GPU-1111']\nreserve = '2GiB'\nlabels = ['big']")
    done = exo_gpu("config", "show", "--json", EXO_GPU_CONFIG=str(path), EXO_GPU_MAP_SLOTS="2")
    assert done.returncode == 0
    told = settings(done)
    assert told["policy"] == {"key": "policy", "value": "balanced", "source": "default"}
    assert told["map.slots"] == {"key": "map.slots", "value": 2, "source": "EXO_GPU_MAP_SLOTS"}
    assert told["device.cuda:0.reserve"]["value"] == 2 * 2**30
    assert told["device.cuda:0.labels"] == {
        "key": "device.cuda:0.labels",
        "value": ["big"],
        "source": str(path),
    }
    assert not any(key.startswith("device.rocm:0") for key in told)
    assert json.loads(done.stdout)["files"] == [{"path": str(path), "read": True}]


def test_for_people_it_fits_a_pipe(devices, exo_gpu, tmp_path):
    (tmp_path / "c.toml").write_text("[device.'GPU-1111']\navoid = true")
    done = exo_gpu("config", "show", EXO_GPU_CONFIG="c.toml")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "device.cuda:0.avoid    true (c.toml)" in done.stdout


def test_a_wrong_file_stops_every_command_in_one_line(devices, exo_gpu, tmp_path):
    """Rule: usage, 2 (map: 255), with the file, the key and the near spelling."""
    path = tmp_path / "config.toml"
    path.write_text("[device.'GPU-1111']\navod = true")
    for words, status in ((("devices",), 2), (("select",), 2), (("map", "true", ":::", "1"), 255)):
        done = exo_gpu(*words, EXO_GPU_CONFIG=str(path))
        assert done.returncode == status
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert str(path) in line
        assert "did you mean 'avoid'?" in line


def test_maps_defaults(devices, exo_gpu, tmp_path):
    """Rule: what map is told by a file holds where no option says otherwise."""
    path = tmp_path / "config.toml"
    path.write_text("[map]\nkeep_order = true\nslots = 2")
    done = exo_gpu("map", "sleep 0.{}; echo {}", ":::", "3", "1", "2", EXO_GPU_CONFIG=str(path))
    assert done.stdout.split() == ["3", "1", "2"]


def test_the_policy_that_is_set_holds_where_none_is_named(devices, exo_gpu, tmp_path):
    """Rule: an option, or the request of a file, comes before what is configured."""
    path, asked = tmp_path / "config.toml", tmp_path / "request.json"
    path.write_text("policy = 'coolest'")

    def policy(*words):
        done = exo_gpu("select", "--json", *words, EXO_GPU_CONFIG=str(path))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["request"]["policy"]

    assert policy() == "coolest"
    assert policy("--policy", "pack") == "pack"
    asked.write_text('{"count": 1}')
    assert policy("--request", str(asked)) == "coolest"
    asked.write_text('{"policy": "balanced"}')
    assert policy("--request", str(asked)) == "balanced"
    assert policy("--request", str(asked), "--policy", "spread") == "spread"


def test_a_policy_that_nobody_has_stops_with_its_source(devices, exo_gpu, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("policy = 'colest'")
    for words, status in (
        (("select",), 2),
        (("run", "true"), 2),
        (("map", "true", ":::", "1"), 255),
    ):
        done = exo_gpu(*words, EXO_GPU_CONFIG=str(path))
        assert (done.returncode, done.stdout) == (status, "")
        assert f"{path}: policy: 'colest'" in done.stderr
        assert "did you mean 'coolest'?" in done.stderr


def test_what_a_display_card_keeps_is_said(script, exo_gpu):
    """Rule: no made-up figure: null, and in words what will hold."""
    script(CUDA | {"drives_display": True})
    told = settings(exo_gpu("config", "show", "--json"))
    assert told["device.cuda:0.reserve"]["value"] is None
    assert "what others use there, and 512.0 MiB more" in told["device.cuda:0.reserve"]["source"]
