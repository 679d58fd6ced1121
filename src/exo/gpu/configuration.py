"""What people set: the machine's file, the user's, the environment, and which of them said what.

It reads files; what the settings mean for a choice is decided in ``scheduling/``.
"""

from __future__ import annotations

import fnmatch
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from exo.gpu.vocabulary.device import RUNTIMES
from exo.gpu.vocabulary.errors import ConfigurationError, InvalidValue, UnknownName
from exo.gpu.vocabulary.settings import DESKTOP_BYTES, DeviceSettings
from exo.gpu.vocabulary.units import (
    check_number,
    check_text,
    check_whole,
    format_size,
    parse_size,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exo.gpu.vocabulary.device import GPUDevice

PATH_VARIABLE = "EXO_GPU_CONFIG"
"""Path of the only configuration file that is read, in place of the machine's and the user's."""

MACHINE_PATH = Path("/etc/exo-gpu/config.toml")

# They draw the desktop and are on a card as long as the session lasts.
DESKTOP_PROCESSES = (
    "Xorg",
    "Xwayland",
    "gnome-shell",
    "kwin_wayland",
    "kwin_x11",
    "plasmashell",
    "mutter",
    "sway",
    "Hyprland",
    "cinnamon",
    "xfwm4",
)

DEFAULT = "default"
# What holds is worked out at the moment of a decision; here only is said what it will be.
_DISPLAY_DEFAULT = (
    "default for a card that drives a display: what others use there, and "
    f"{format_size(DESKTOP_BYTES)} more"
)


class DeviceRule(msgspec.Struct, frozen=True):
    """Settings of the devices that a pattern names, as one file has them."""

    pattern: str
    """A device id, hardware id, alias or name, or a pattern of them with ``*`` and ``?``."""
    settings: dict[str, Any]
    """By the names of :class:`DeviceSettings`; what is not in it was not set."""
    source: str

    def names(self, device: GPUDevice) -> bool:
        """Whether it is about this device; upper and lower case are the same."""
        pattern = self.pattern.casefold()
        known = (device.device_id, device.hardware_id, device.name, *device.aliases)
        return any(fnmatch.fnmatchcase(name.casefold(), pattern) for name in known)


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """All settings in force. ``sources`` says where a key that is not a default comes from."""

    rules: tuple[DeviceRule, ...] = ()
    """In the order of their sources: of two that set the same, the later one holds."""
    values: dict[str, Any] = {}  # msgspec copies an empty default for each value
    sources: dict[str, str] = {}
    files: tuple[str, ...] = ()
    """The files that were read."""

    def value(self, key: str) -> Any:
        """The value of one of :data:`KEYS`."""
        return self.values[key] if key in self.values else KEYS[key].default

    def python_of(self, runtime: str) -> str | None:
        """The interpreter set for a runtime's workers, or None."""
        return self.values.get(f"runtime.{runtime}.python")

    def settings_of(self, device: GPUDevice) -> DeviceSettings:
        """What was set for a device, over the defaults of its kind."""
        return DeviceSettings(**{name: value for name, (value, _) in self.told(device).items()})

    def told(self, device: GPUDevice) -> dict[str, tuple[Any, str]]:
        """What holds for a device that is no plain default: by setting, the value and source."""
        told: dict[str, tuple[Any, str]] = {}
        if device.drives_display:
            told["reserve_bytes"] = (None, _DISPLAY_DEFAULT)
        for rule in self.rules:
            if rule.names(device):
                told |= {name: (value, rule.source) for name, value in rule.settings.items()}
        return told


class Key(msgspec.Struct, frozen=True):
    """One setting outside the devices': how it is read, and the variable that may set it."""

    check: Callable[[str, Any], Any]
    default: Any
    variable: str = ""


def load_configuration(
    environ: Mapping[str, str], *, machine: Path = MACHINE_PATH
) -> Configuration:
    """Read what is set: ``machine``'s file, the user's, then the environment; later ones hold.

    A file that is not there sets nothing; the one that ``EXO_GPU_CONFIG`` names must be there.

    Raises:
        ConfigurationError: naming the file or variable, the key and the value, for anything that
            is not known or cannot be; an unknown key with the near spelling.

    """
    named = environ.get(PATH_VARIABLE)
    paths = [Path(named)] if named else [machine, user_path(environ)]
    rules: list[DeviceRule] = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    files: list[str] = []
    for path in paths:
        table = _read(path, needed=bool(named))
        if table is None:
            continue
        files.append(str(path))
        rules += _rules(table.pop("device", {}), str(path))
        found = _settings(table, str(path))
        values |= found
        sources |= dict.fromkeys(found, str(path))
    for name, key in KEYS.items():
        text = environ.get(key.variable) if key.variable else None
        if text:
            values[name] = _checked(f"the variable {key.variable}", "", key.check, text)
            sources[name] = key.variable
    return Configuration(rules=tuple(rules), values=values, sources=sources, files=tuple(files))


def user_path(environ: Mapping[str, str]) -> Path:
    """The user's own file: ``config.toml`` in the configuration folder of this system."""
    if sys.platform == "linux":  # as platformdirs has it, without the time to load it
        base = environ.get("XDG_CONFIG_HOME", "")
        folder = Path(base) if base.strip() else Path("~/.config").expanduser()
        return folder / "exo-gpu" / "config.toml"
    import platformdirs

    return platformdirs.user_config_path("exo-gpu", appauthor=False) / "config.toml"


def _read(path: Path, *, needed: bool) -> dict[str, Any] | None:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if needed:
            raise ConfigurationError(
                f"{path} is not there, and {PATH_VARIABLE} names it: make it, or unset the variable"
            ) from None
        return None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error
    import tomllib

    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error


def _rules(table: object, source: str) -> list[DeviceRule]:
    rules: list[DeviceRule] = []
    for pattern, settings in _table(source, "device", table).items():
        path = f"device.{pattern!r}"
        found: dict[str, Any] = {}
        for name, value in _table(source, path, settings).items():
            if name not in DEVICE_KEYS:
                raise _unknown(source, path, name, DEVICE_KEYS)
            field, check = DEVICE_KEYS[name]
            found[field] = _checked(source, f"{path}.{name}", check, value)
        rules.append(DeviceRule(pattern, found, source))
    return rules


def _settings(table: dict[str, Any], source: str) -> dict[str, Any]:
    """The keys of a file outside its devices, by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name == "runtime":
            found |= _runtimes(value, source)
        elif name in _SECTIONS:
            for inner, one in _table(source, name, value).items():
                key = f"{name}.{inner}"
                if key not in KEYS:
                    raise _unknown(source, name, inner, _SECTIONS[name])
                found[key] = _checked(source, key, KEYS[key].check, one)
        elif name in KEYS:
            found[name] = _checked(source, name, KEYS[name].check, value)
        else:
            known = [*(key for key in KEYS if "." not in key), *_SECTIONS, "device", "runtime"]
            raise _unknown(source, "", name, known)
    return found


def _runtimes(table: object, source: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for runtime, settings in _table(source, "runtime", table).items():
        if runtime not in RUNTIMES:
            raise _unknown(source, "runtime", runtime, RUNTIMES)
        for name, value in _table(source, f"runtime.{runtime}", settings).items():
            if name != "python":
                raise _unknown(source, f"runtime.{runtime}", name, ("python",))
            key = f"runtime.{runtime}.python"
            found[key] = _checked(source, key, _interpreter, value)
    return found


def _table(source: str, key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{source}: {InvalidValue(key, value, 'a table')}")
    return dict(value)  # pyright: ignore[reportUnknownArgumentType] - TOML's keys are text


def _checked(source: str, key: str, check: Callable[[str, Any], Any], value: Any) -> Any:
    try:
        return check(key, value)
    except InvalidValue as error:
        raise ConfigurationError(f"{source}: {str(error).removeprefix(': ')}") from None


def _unknown(source: str, path: str, name: str, known: Any) -> ConfigurationError:
    field = f"key in [{path}]" if path else "key"
    return ConfigurationError(f"{source}: {UnknownName(field, name, known)}")


def _flag(field: str, value: Any) -> bool:
    if isinstance(value, str) and value.lower() in {"true", "false"}:  # from the environment
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise InvalidValue(field, value, "true or false")
    return value


def _weight(field: str, value: Any) -> float:
    check_number(field, value, low=0)
    return float(value)


def _share(field: str, value: Any) -> float:
    check_number(field, value, low=0, high=1)
    return float(value)


def _count(field: str, value: Any) -> int:
    written = isinstance(value, str) and value.isdecimal()  # from the environment
    count: Any = int(value) if written else value
    check_whole(field, count, low=1)
    return count


def _size(field: str, value: Any) -> int:
    return parse_size(value, field)


def _text(field: str, value: Any) -> str:
    check_text(field, value)
    return value


def _texts(field: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):  # from the environment: separated by commas
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list):
        raise InvalidValue(field, value, "a list of texts")
    texts: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - checked below
    for one in texts:
        check_text(field, one)
    return tuple(texts)


def _patterns(field: str, value: Any) -> tuple[str, ...]:
    patterns = _texts(field, value)
    import re

    for one in patterns:
        try:
            re.compile(one)
        except re.error as error:
            raise InvalidValue(field, one, f"a regular expression ({error})") from None
    return patterns


def _interpreter(field: str, value: Any) -> str:
    check_text(field, value)
    if not os.access(value, os.X_OK):
        raise InvalidValue(field, value, "the path of a Python interpreter that can be started")
    return value


KEYS: dict[str, Key] = {
    "policy": Key(_text, "balanced", "EXO_GPU_POLICY"),
    "ignore_processes": Key(_texts, DESKTOP_PROCESSES, "EXO_GPU_IGNORE_PROCESSES"),
    "map.slots": Key(_count, None, "EXO_GPU_MAP_SLOTS"),
    "map.keep_order": Key(_flag, False, "EXO_GPU_MAP_KEEP_ORDER"),
    "outcome.out_of_memory": Key(_patterns, ()),
    "outcome.device_lost": Key(_patterns, ()),
}
"""Every setting outside the devices', by its dotted name."""

_SECTIONS = {
    section: tuple(key.partition(".")[2] for key in KEYS if key.startswith(f"{section}."))
    for section in ("map", "outcome")
}

DEVICE_KEYS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "avoid": ("avoid", _flag),
    "weight": ("weight", _weight),
    "reserve": ("reserve_bytes", _size),
    "labels": ("labels", _texts),
    "slots": ("slots", _count),
    "max_share": ("max_share", _share),
}
"""What can be set for a device: the name in a file, the field of DeviceSettings, the check."""
