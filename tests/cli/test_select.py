"""``exo-gpu select``: the choice in the form that is asked for, and why."""

from __future__ import annotations

import json
import os
import subprocess

import psutil
import pytest

from tests.cli.conftest import CUDA


def test_the_best_device_is_printed_alone(devices, exo_gpu):
    """Rule: standard output has the choice and nothing else; what was left out goes elsewhere."""
    done = exo_gpu("select")
    assert (done.returncode, done.stdout) == (0, "cuda:0\n")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("exo-gpu: left out: rocm:0 (of another runtime)")
    assert "cpu:0 (of another class)" in done.stderr


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (["--memory", "3GiB"], ["cuda:0"]),
        (["--on", "rocm"], ["rocm:0"]),
        (["--device", "cpu:0"], ["cpu:0"]),
        (["--device", "GPU-2222"], ["rocm:0"]),
        (["--device", "rocm:0", "--device", "cpu:0", "--memory", "12GiB"], ["cpu:0"]),
        (["--exclusive"], ["cuda:0"]),
        (["--share", "0.5"], ["cuda:0"]),
        (["--class", "host"], ["cpu:0"]),
        (["--vendor", "amd"], ["rocm:0"]),
        (["--backend", "fake"], ["cuda:0"]),
        (["--not-device", "cuda:0"], ["rocm:0"]),
        (["--prefer", "rocm:0"], ["rocm:0"]),
        (["--max-temperature", "45"], ["cuda:0"]),
        (["--min-idle", "90"], ["cuda:0"]),
        (["--host-cpus", "2", "--host-memory", "8GiB"], ["cuda:0"]),
        (["--policy", "pack"], ["rocm:0"]),
        (["--policy", "fragmentation"], ["rocm:0"]),
        (["--affinity", "llama", "--priority", "3", "--expect", "20m"], ["cuda:0"]),
        (
            ["--all-devices", "--count", "2", "--same-node", "--interconnect", "any"],
            ["cuda:0", "rocm:0"],
        ),
        (["--all-devices", "--count", "3"], ["cuda:0", "cpu:0", "rocm:0"]),
    ],
)
def test_options_say_what_is_wanted(options, chosen, devices, exo_gpu):
    """Rule: memory, runtime, devices, count and everything at once are understood."""
    done = exo_gpu("select", *options)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(chosen)


def test_nothing_left_out_nothing_said(devices, exo_gpu):
    """Rule: standard error stays empty when there is nothing to say."""
    assert exo_gpu("select", "--device", "cuda:0").stderr == ""


def test_uuid_prints_the_hardware_ids(devices, exo_gpu):
    """Rule: the ids that no order of devices can change."""
    assert exo_gpu("select", "--format", "uuid").stdout == "GPU-1111\n"


def test_env_is_for_eval(devices, exo_gpu):
    """Rule: the lines pin whatever the shell starts next, with an explanation as comments."""
    done = exo_gpu("select", "--format", "env", "--explain")
    shell = 'eval "$1"; printf "%s" "$EXO_GPU_FAKE_VISIBLE"'
    seen = subprocess.run(
        ["/bin/sh", "-c", shell, "sh", done.stdout], capture_output=True, text=True, check=True
    )
    assert seen.stdout == "GPU-1111"
    assert seen.stderr == ""
    assert "\n# Request: " in done.stdout


def test_json_is_the_decision(devices, exo_gpu):
    """Rule: JSON holds the decision, term by term, and the chosen devices whole."""
    by_format = exo_gpu("select", "--format", "json").stdout
    decision = json.loads(by_format)
    assert decision["chosen"] == ["cuda:0"]
    assert decision["devices"][0]["hardware_id"] == "GPU-1111"
    assert decision["ranking"][0]["device_id"] == "cuda:0"
    assert {one["device_id"] for one in decision["left_out"]} == {"rocm:0", "cpu:0"}
    explained = json.loads(exo_gpu("select", "--json", "--explain").stdout)
    assert "score" in explained["explanation"]
    assert explained["chosen"] == decision["chosen"]


def test_explain_follows_the_choice(devices, exo_gpu):
    """Rule: first the choice, then every device with its terms or its refusal, in 80 columns."""
    lines = exo_gpu("select", "--memory", "8GiB", "--explain").stdout.splitlines()
    assert lines[0] == "cuda:0"
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "Request: memory 8.0 GiB" in text
    assert "rocm:0" in text
    assert "score" in text


def test_a_no_is_explained_too(devices, exo_gpu):
    """Rule: why nothing fits is printed where it is asked for, and the status still says never."""
    done = exo_gpu("select", "--memory", "99TiB", "--explain")
    assert done.returncode == 69
    assert "Refused:" in done.stdout
    assert "cuda:0 with 24.0 GiB" in done.stderr
    decision = exo_gpu("select", "--memory", "99TiB", "--json")
    assert decision.returncode == 69
    assert json.loads(decision.stdout)["chosen"] == []
    assert json.loads(decision.stdout)["never"] is True


def test_an_unknown_device_is_named(devices, exo_gpu):
    """Rule: a device that is not here is never there, and the error says which are."""
    done = exo_gpu("select", "--device", "cuda:7")
    assert done.returncode == 69
    assert "cuda:7" in done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_is_taken(devices, exo_gpu):
    """Rule: a choice reserves nothing: the next one is the same."""
    first = exo_gpu("select", "--exclusive")
    assert exo_gpu("select", "--exclusive").stdout == first.stdout == "cuda:0\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--share", "0"], "share: 0.0 is not above 0"),
        (["--share", "-1"], "share: -1.0 is not a finite number within 0..1"),
        (["--memory", "0"], "--memory: '0' is not a size above 0"),
        (["--memory", "-1"], "--memory: '-1' is not a size"),
        (["--min-idle", "101"], "min_idle_percent: 101.0"),
        (["--min-capability", "sm_86"], "min_compute_capability: 'sm_86'"),
        (["--class", "hardwar"], "did you mean 'hardware'?"),
        (["--interconnect", "nvlnk"], "did you mean 'nvlink'?"),
        (["--policy", "fastes"], "did you mean 'fastest'?"),
        (["--all-devices", "--class", "host"], "--all-devices cannot go with"),
    ],
)
def test_a_value_that_cannot_be_is_a_usage_error(options, said, devices, exo_gpu):
    """Rule: one line that names the value and what is expected, and status 2."""
    done = exo_gpu("select", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--exclusive", "--share", "0.5"], ["asked for alone, and a share of 0.5"]),
        (["--label", "big"], ["no device here has the label 'big' (here: none)"]),
        (
            ["--device", "cuda:0", "--not-device", "cuda:0", "--exclusive", "--share", "0.5"],
            ["'cuda:0' is asked for and ruled out", "a share of 0.5"],
        ),
        (
            ["--on", "cuda", "--vendor", "AMD"],
            ["cuda:0 is made by NVIDIA, not AMD", "rocm:0 belongs to runtime rocm, not cuda"],
        ),
        (["--count", "2", "--on", "cuda"], ["2 devices asked for"]),
    ],
)
def test_wishes_that_cannot_be_met_are_never_with_all_reasons(options, said, devices, exo_gpu):
    """Rule: status 69 at once, with every reason in one line."""
    done = exo_gpu("select", *options)
    assert (done.returncode, done.stdout) == (69, "")
    for words in said:
        assert words in done.stderr


class TestRequestsAsJson:
    def test_a_request_comes_from_a_file_or_from_standard_input(self, devices, exo_gpu, tmp_path):
        """Rule: the fields of a request, in JSON, wherever it comes from."""
        text = json.dumps({"memory_bytes": 2**30, "runtime": "rocm", "holder": "a script"})
        (tmp_path / "request.json").write_text(text)
        assert exo_gpu("select", "--request", "request.json").stdout == "rocm:0\n"
        done = exo_gpu("select", "--request", "-", "--json", stdin=text)
        asked = json.loads(done.stdout)["request"]
        assert (asked["memory_bytes"], asked["holder"]) == (2**30, "a script")

    def test_options_come_on_top(self, devices, exo_gpu):
        """Rule: an option that is given replaces what the file says, the rest stays."""
        text = json.dumps({"memory_bytes": 2**30, "count": 2, "all_devices": True})
        done = exo_gpu("select", "--request", "-", "--memory", "3GiB", "--json", stdin=text)
        asked = json.loads(done.stdout)["request"]
        assert (asked["memory_bytes"], asked["count"]) == (3 * 2**30, 2)
        done = exo_gpu("select", "--request", "-", "--count", "1", "--json", stdin=text)
        assert json.loads(done.stdout)["request"]["count"] == 1

    def test_run_and_map_take_one_too(self, devices, exo_gpu, tmp_path):
        """Rule: whatever asks for devices may be told what for in JSON."""
        (tmp_path / "one.json").write_text('{"devices": ["rocm:0"]}')
        (tmp_path / "two.json").write_text('{"count": 2}')
        show = "echo $EXO_GPU_FAKE_VISIBLE"
        done = exo_gpu("run", "--request", "one.json", "--", "sh", "-c", show)
        assert done.stdout == "GPU-2222\n"
        done = exo_gpu("map", "--request", "one.json", f"{show} {{}}", ":::", "a")
        assert done.stdout == "GPU-2222 a\n"
        done = exo_gpu("map", "--request", "two.json", "echo", ":::", "a")
        assert (done.returncode, done.stdout) == (255, "")
        assert "an item has one device" in done.stderr

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "--request: "),
            ("[1]", "--request: "),
            ('{"memory_byte": 1}', "did you mean 'memory_bytes'?"),
            ('{"memory_bytes": 0}', "memory_bytes: 0 is not a whole number of at least 1"),
            ('{"memory_bytes": "8GiB"}', "--request: "),
        ],
    )
    def test_what_is_no_request_is_a_usage_error(self, text, said, devices, exo_gpu):
        """Rule: a misspelt field stops the command, as a misspelt option does."""
        done = exo_gpu("select", "--request", "-", stdin=text)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr


def test_a_whole_device_on_which_somebody_works_is_not_chosen(script, exo_gpu):
    """Rule: not now, 75, with pid and command; a program that is set to be ignored does not count."""
    script(CUDA | {"processes": [{"pid": os.getpid()}]})  # to the command, its parent is foreign
    done = exo_gpu("select", "--exclusive")
    assert (done.returncode, done.stdout) == (75, "")
    assert f"process {os.getpid()} (" in done.stderr
    assert "works there without a lease" in done.stderr
    name = psutil.Process().name()
    done = exo_gpu("select", "--exclusive", EXO_GPU_IGNORE_PROCESSES=name)
    assert (done.returncode, done.stdout) == (0, "cuda:0\n")


@pytest.mark.parametrize(
    ("option", "name", "told"),
    [
        ("--not-device", "cdua:0", "no device here is called 'cdua:0' (did you mean 'cuda:0'?"),
        ("--prefer", "cuda:7", "no device here is called 'cuda:7'"),
        ("--without-label", "nights", "no device here has the label 'nights'"),
    ],
)
def test_a_name_that_changes_nothing_is_told(devices, exo_gpu, option, name, told):
    """Rule: what is ruled out or preferred and is not here was perhaps misspelt; the answer stands."""
    answer = exo_gpu("select", option, name)
    assert (answer.returncode, answer.stdout) == (0, exo_gpu("select").stdout)
    assert told in answer.stderr
    assert told in exo_gpu("run", option, name, "--", "true").stderr
    assert exo_gpu("map", option, name, "true", ":::", "1", "2").stderr.count(told) == 1
