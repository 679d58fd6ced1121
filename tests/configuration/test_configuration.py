"""What is set: which source holds, what each key may be, and that nothing wrong passes unnoticed."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.gpu.configuration import (
    DEVICE_KEYS,
    KEYS,
    Configuration,
    load_configuration,
    user_path,
)
from exo.gpu.vocabulary.device import GPUDevice
from exo.gpu.vocabulary.errors import ConfigurationError
from exo.gpu.vocabulary.settings import DeviceSettings

CARD = GPUDevice(
    "cuda:0",
    "NVIDIA GeForce RTX 4090",
    "NVIDIA",
    "cuda",
    hardware_id="GPU-7d9f",
    aliases=("vulkan:1",),
)


@pytest.fixture
def load(tmp_path: Path):
    """Loads a machine's and a user's file, either of which may be missing."""

    def load(user: str | None = None, machine: str | None = None, **environ: str) -> Configuration:
        environ = {"XDG_CONFIG_HOME": str(tmp_path), **environ}
        if user is not None:
            path = user_path(environ)
            path.parent.mkdir(exist_ok=True)
            path.write_text(user)
        etc = tmp_path / "etc.toml"
        if machine is not None:
            etc.write_text(machine)
        return load_configuration(environ, machine=etc)

    return load


def test_without_any_file_everything_is_at_its_default(load):
    """Rule: nothing has to be configured."""
    found = load()
    assert found.files == ()
    assert {key: found.value(key) for key in KEYS} == {
        key: one.default for key, one in KEYS.items()
    }
    assert found.settings_of(CARD) == DeviceSettings()


def test_the_later_source_holds_key_by_key(load):
    """Rule: machine, then user, then environment; each sets only what it names."""
    found = load(
        user='policy = "coolest"\n[device."cuda:0"]\nweight = 2',
        machine='policy = "pack"\n[map]\nslots = 3\nkeep_order = true\n[device."cuda:*"]\nweight = 1\navoid = true',
        EXO_GPU_MAP_SLOTS="4",
    )
    assert found.value("policy") == "coolest"
    assert (found.value("map.slots"), found.value("map.keep_order")) == (4, True)
    assert found.sources["map.slots"] == "EXO_GPU_MAP_SLOTS"
    assert found.sources["policy"].endswith("exo-gpu/config.toml")
    assert found.sources["map.keep_order"].endswith("etc.toml")
    assert found.settings_of(CARD) == DeviceSettings(weight=2.0, avoid=True)


def test_a_named_file_is_the_only_one(load, tmp_path):
    """Rule: EXO_GPU_CONFIG stands in place of both files, and must be there."""
    alone = tmp_path / "alone.toml"
    alone.write_text('policy = "spread"')
    found = load(user='policy = "coolest"', machine="[map]\nslots = 3", EXO_GPU_CONFIG=str(alone))
    assert (found.value("policy"), found.value("map.slots")) == ("spread", None)
    alone.unlink()
    with pytest.raises(ConfigurationError, match=r"alone\.toml is not there.*EXO_GPU_CONFIG"):
        load(EXO_GPU_CONFIG=str(alone))


@pytest.mark.parametrize(
    "pattern", ["cuda:0", "GPU-7d9f", "gpu-7D9F", "vulkan:1", "*4090", "GPU-*"]
)
def test_a_device_goes_by_any_of_its_names(load, pattern):
    found = load(f"[device.'{pattern}']\nlabels = ['a', 'b']")
    assert found.settings_of(CARD).labels == ("a", "b")


@pytest.mark.parametrize("pattern", ["cuda:1", "GPU-7", "4090", ""])
def test_a_pattern_names_the_whole_name(load, pattern):
    assert load(f"[device.'{pattern}']\navoid = true").settings_of(CARD) == DeviceSettings()


def test_what_a_display_card_keeps_is_left_to_the_decision_and_said(load):
    """Rule: its reserve is what others use at that moment and more, unless somebody set another."""
    screen = GPUDevice("cuda:0", "RTX", "NVIDIA", "cuda", drives_display=True)
    assert load().settings_of(screen).reserve_bytes is None
    assert "512.0 MiB more" in load().told(screen)["reserve_bytes"][1]
    assert load("[device.RTX]\nreserve = 0").settings_of(screen).reserve_bytes == 0
    assert load().told(CARD) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("polcy = 'pack'", r"key: 'polcy' .*did you mean 'policy'"),
        ("[mapp]\nslots = 1", r"'mapp' .*did you mean 'map'"),
        ("[map]\nslot = 1", r"key in \[map\]: 'slot' .*did you mean 'slots'"),
        ("[device.'cuda:0']\navod = true", r"cuda:0.*'avod' .*did you mean 'avoid'"),
        ("[runtime.cuad]\npython = '/bin/sh'", r"'cuad' .*did you mean 'cuda'"),
        ("[runtime.cuda]\npyhton = '/bin/sh'", r"'pyhton' .*did you mean 'python'"),
        (
            "[runtime.cuda]\npython = '/no/such'",
            r"runtime\.cuda\.python: '/no/such' is not the path",
        ),
        ("[map]\nslots = 0", r"map\.slots: 0 is not a whole number of at least 1"),
        ("[map]\nkeep_order = 1", r"map\.keep_order: 1 is not true or false"),
        ("[map]\nkeep_order = 'yes'", r"map\.keep_order: 'yes' is not true or false"),
        ("map = 3", r"map: 3 is not a table"),
        ("device = []", r"device: \[\] is not a table"),
        ("[device]\nRTX = 1", r"RTX.*: 1 is not a table"),
        ("ignore_processes = [1]", r"ignore_processes: 1 is not non-empty text"),
        ("ignore_processes = 7", r"ignore_processes: 7 is not a list of texts"),
        ("[device.a]\nweight = nan", r"weight: nan is not a finite number"),
        ("[device.a]\nweight = -1", r"weight: -1 is not a finite number"),
        ("[device.a]\nmax_share = 1.5", r"max_share: 1.5 is not"),
        ("[device.a]\nreserve = '2 bananas'", r"reserve: '2 bananas' is not a size"),
        ("[device.a]\nreserve = -5", r"reserve: -5 is not a size"),
        ("policy = ", r"is not TOML: Invalid value"),
        ("policy = '\udcff'", r"is not TOML"),
    ],
)
def test_what_is_not_known_or_cannot_be_stops(load, tmp_path, text, message):
    """Rule: the error names the file, the key and the value, and the near spelling."""
    path = tmp_path / "wrong.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(EXO_GPU_CONFIG=str(path))
    assert str(path) in str(caught.value)


def test_a_wrong_variable_is_named(load):
    with pytest.raises(ConfigurationError, match=r"EXO_GPU_MAP_SLOTS.*'many'"):
        load(EXO_GPU_MAP_SLOTS="many")


def test_a_file_that_cannot_be_read_is_named(load, tmp_path):
    """Rule: a folder in the file's place is told, not passed over."""
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(EXO_GPU_CONFIG=str(tmp_path))


def test_lists_and_flags_from_the_environment(load):
    found = load(EXO_GPU_IGNORE_PROCESSES="Xorg, steam,", EXO_GPU_MAP_KEEP_ORDER="true")
    assert found.value("ignore_processes") == ("Xorg", "steam")
    assert found.value("map.keep_order") is True


def test_an_interpreter_for_a_runtime(load, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(stat.S_IRWXU)
    found = load(f"[runtime.rocm]\npython = '{python}'")
    assert found.python_of("rocm") == str(python)
    assert found.python_of("cuda") is None


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "avoid": st.booleans(),
                "weight": st.floats(0, 10),
                "slots": st.integers(1, 9),
                "max_share": st.floats(0, 1),
            },
        ),
        max_size=4,
    )
)
def test_of_several_rules_the_last_that_sets_a_thing_holds(tables):
    """Rule: rules add up field by field, in their order."""
    from exo.gpu.configuration import DeviceRule

    fields = {name: field for name, (field, _) in DEVICE_KEYS.items()}
    rules = [
        DeviceRule("cuda:*", {fields[name]: value for name, value in one.items()}, str(place))
        for place, one in enumerate(tables)
    ]
    expected: dict[str, object] = {}
    for one in tables:
        expected |= one
    assert Configuration(rules=tuple(rules)).settings_of(CARD) == DeviceSettings(**expected)


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of Linux")
def test_the_users_file_follows_the_desktops_convention(tmp_path):
    assert user_path({"XDG_CONFIG_HOME": str(tmp_path)}) == tmp_path / "exo-gpu" / "config.toml"
    assert user_path({}) == Path("~/.config/exo-gpu/config.toml").expanduser()


def test_patterns_of_outcomes_are_read_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[outcome]\nout_of_memory = ['arena full']\ndevice_lost = ['E47\\d+']\n")
    configuration = load_configuration({"EXO_GPU_CONFIG": str(path)})
    assert configuration.value("outcome.out_of_memory") == ("arena full",)
    assert configuration.value("outcome.device_lost") == (r"E47\d+",)
    path.write_text("[outcome]\ndevice_lost = ['(']\n")
    with pytest.raises(ConfigurationError, match=r"config.toml: .*device_lost.*regular expression"):
        load_configuration({"EXO_GPU_CONFIG": str(path)})
