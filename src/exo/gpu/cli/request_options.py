"""The options by which a command line says what its work needs, and the request they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from exo.gpu.cli.request_files import request_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from exo.gpu.vocabulary.request import Request

AUTO = "auto"
"""For the memory that was learned of a kind of work."""

Command = TypeVar("Command", bound="Callable[..., Any]")


def size(ctx: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """Bytes of ``8GiB``, ``8GB``, ``500MiB`` or a plain number; a click callback.

    Raises:
        UsageError: naming the option and the text.

    """
    from exo.gpu.vocabulary.errors import InvalidValue
    from exo.gpu.vocabulary.units import parse_size

    try:
        parsed = None if text is None else parse_size(text, option.opts[-1])
        if parsed == 0:
            raise InvalidValue(option.opts[-1], text, "a size above 0; leave it out to take a slot")
    except InvalidValue as error:
        raise click.UsageError(str(error), ctx) from None
    return parsed


def size_or_auto(ctx: click.Context, option: click.Parameter, text: str | None) -> int | str | None:
    """As :func:`size`, or ``auto``; a click callback."""
    return AUTO if text == AUTO else size(ctx, option, text)


def duration(ctx: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """Seconds of ``30m``, ``90s``, ``1.5h`` or a plain number; a click callback.

    Raises:
        UsageError: naming the option and the text.

    """
    from exo.gpu.vocabulary.errors import InvalidValue
    from exo.gpu.vocabulary.units import parse_duration

    try:
        return None if text is None else parse_duration(text, option.opts[-1])
    except InvalidValue as error:
        raise click.UsageError(str(error), ctx) from None


def duration_from(shortest_seconds: float) -> Callable[..., float | None]:
    """A click callback as :func:`duration`, for times that must not be shorter."""

    def check(ctx: click.Context, option: click.Parameter, text: str | None) -> float | None:
        seconds = duration(ctx, option, text)
        if seconds is not None and seconds < shortest_seconds:
            message = f"{option.opts[-1]}: {text!r} is not a duration of at least "
            raise click.UsageError(f"{message}{shortest_seconds:g}s", ctx)
        return seconds

    return check


def runtime(ctx: click.Context, option: click.Parameter, name: str | None) -> str | None:
    """One of the runtimes that exist; a click callback.

    Raises:
        UsageError: naming the option, the text and the near spelling.

    """
    return _one_of(ctx, option, name, _runtime_names())


def device_class(ctx: click.Context, option: click.Parameter, name: str | None) -> str | None:
    """One of the classes that exist; a click callback."""
    return _one_of(ctx, option, name, _class_names())


def interconnect(ctx: click.Context, option: click.Parameter, name: str | None) -> str | None:
    """One of the words for how devices are joined; a click callback."""
    return _one_of(ctx, option, name, _interconnect_names())


def _one_of(
    ctx: click.Context, option: click.Parameter, name: str | None, known: Iterable[str]
) -> str | None:
    from exo.gpu.vocabulary.errors import UnknownName

    if name is None or name in (names := list(known)):
        return name
    raise click.UsageError(str(UnknownName(option.opts[-1], name, names)), ctx)


def _runtime_names() -> Iterable[str]:
    from exo.gpu.vocabulary.device import RUNTIMES

    return RUNTIMES


def _class_names() -> Iterable[str]:
    from exo.gpu.vocabulary.device import DeviceClass

    return [one.value for one in DeviceClass]


def _interconnect_names() -> Iterable[str]:
    from exo.gpu.vocabulary.links import Interconnect

    return [one.value for one in Interconnect]


def _policy_names() -> Iterable[str]:
    from exo.gpu.scheduling.policies import POLICIES

    return POLICIES


def _completing(names: Callable[[], Iterable[str]]) -> Callable[..., list[str]]:
    """Let the shell complete words that are only looked up when it asks."""

    def complete(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
        return [name for name in names() if name.startswith(incomplete)]

    return complete


count_option = click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many devices, 1 by default; all or nothing, and joined as well as can be.",
)
_GANG_OPTIONS = (
    count_option,
    click.option("--same-node", is_flag=True, help="All of them in one machine."),
    click.option(
        "--interconnect",
        callback=interconnect,
        shell_complete=_completing(_interconnect_names),
        metavar="KIND",
        help="How each two must be joined at least: nvlink, same_switch or any.",
    ),
)
_ON_OPTION = click.option(
    "--on",
    "runtime",
    callback=runtime,
    shell_complete=_completing(_runtime_names),
    metavar="RUNTIME",
    help="Only devices of this runtime: what the program was built for.",
)

_REQUEST_OPTIONS = (
    click.option(
        "--request",
        "base",
        type=click.File("rb"),
        callback=request_in,
        metavar="FILE",
        help="A request as JSON, '-' for standard input; options given beside it come on top.",
    ),
    click.option(
        "--memory",
        callback=size_or_auto,
        metavar="SIZE",
        help="Device memory needed in total, such as 8GiB, 8GB or 500MiB; 'auto' for what work of "
        "this kind was seen to take; without it, one of the device's slots is taken instead.",
    ),
    click.option(
        "--kind",
        metavar="TEXT",
        help="What kind of work it is, to learn and to tell its time and memory by; else its own "
        "words.",
    ),
    click.option(
        "--share",
        type=float,
        metavar="PART",
        help="The part of a device that is needed, above 0 and at most 1.",
    ),
    click.option(
        "--device",
        "devices",
        multiple=True,
        metavar="ID",
        help="Only this device (id, alias or hardware id), of whatever kind; may be repeated.",
    ),
    click.option(
        "--not-device",
        "without_devices",
        multiple=True,
        metavar="ID",
        help="Not this device; may be repeated.",
    ),
    click.option(
        "--prefer",
        multiple=True,
        metavar="ID",
        help="This device before others, if it will do; may be repeated.",
    ),
    _ON_OPTION,
    click.option(
        "--all-devices",
        is_flag=True,
        help="Every runtime at once, software drivers and the host beside hardware.",
    ),
    click.option(
        "--exclusive",
        is_flag=True,
        help="Nobody else's lease on the same device, and no foreign program.",
    ),
    click.option(
        "--class",
        "device_class",
        callback=device_class,
        shell_complete=_completing(_class_names),
        metavar="CLASS",
        help="Only devices of this class: hardware, software or host.",
    ),
    click.option(
        "--vendor", "vendors", multiple=True, metavar="NAME", help="Only this vendor's devices."
    ),
    click.option(
        "--backend",
        "backends",
        multiple=True,
        metavar="NAME",
        help="Only devices that this backend found.",
    ),
    click.option(
        "--min-capability",
        "min_compute_capability",
        metavar="NUMBER",
        help="Compute capability of at least this, such as 8.6.",
    ),
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="LABEL",
        help="Only devices with this label; may be repeated.",
    ),
    click.option(
        "--without-label",
        "without_labels",
        multiple=True,
        metavar="LABEL",
        help="Only devices without this label; may be repeated.",
    ),
    click.option(
        "--min-idle",
        "min_idle_percent",
        type=float,
        metavar="PERCENT",
        help="At least so much of the device's compute free.",
    ),
    click.option(
        "--max-temperature",
        "max_temperature_celsius",
        type=float,
        metavar="CELSIUS",
        help="At most so hot.",
    ),
    click.option("--node", metavar="NAME", help="Only devices of this machine."),
    click.option(
        "--host-cpus",
        type=click.IntRange(min=1),
        metavar="N",
        help="Processor cores of the machine, beside the devices.",
    ),
    click.option(
        "--host-memory",
        "host_memory_bytes",
        callback=size,
        metavar="SIZE",
        help="Memory of the machine, beside the devices.",
    ),
    click.option(
        "--affinity",
        "affinity_key",
        metavar="KEY",
        help="Rather a device whose warm worker holds this, such as a model's name.",
    ),
    click.option(
        "--priority", type=int, metavar="N", help="The higher is served first where work waits."
    ),
    click.option(
        "--expect",
        "expected_seconds",
        callback=duration,
        metavar="TIME",
        help="How long it will take, such as 20m: less work is served first where work waits.",
    ),
    click.option(
        "--policy",
        shell_complete=_completing(_policy_names),
        metavar="NAME",
        help="How devices are weighed: balanced (the default, unless another is set), fastest, "
        "coolest, pack, spread, fragmentation, efficient, soonest (by what was learned of --kind), "
        "or one that a package brings.",
    ),
)


def request_options(command: Command) -> Command:
    """Give a command the options that say what its work needs of one device."""
    for option in reversed(_REQUEST_OPTIONS):
        command = option(command)
    return command


def request_options_of_many(command: Command) -> Command:
    """The same options, where ``--on`` may name several runtimes."""
    several = click.option(
        "--on",
        "runtimes",
        multiple=True,
        callback=_known_runtimes,
        shell_complete=_completing(_runtime_names),
        metavar="RUNTIME",
        help="Only devices of this runtime; several, each before a template of its own, make "
        "unlike devices work together.",
    )
    for option in reversed(_REQUEST_OPTIONS):
        command = (several if option is _ON_OPTION else option)(command)
    return command


def _known_runtimes(
    ctx: click.Context, option: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    for name in names:
        runtime(ctx, option, name)
    return names


def gang_options(command: Command) -> Command:
    """Give a command the options for several devices at once."""
    for option in reversed(_GANG_OPTIONS):
        command = option(command)
    return command


def make_request(holder: str, options: dict[str, Any]) -> Request:
    """The request that the options describe, laid over that of ``--request`` where there is one.

    ``holder`` says who asks, for people. An option that was not given changes nothing; where no
    policy was named, the one that is set in the configuration holds.

    Raises:
        UsageError: for options that exclude each other.
        InvalidValue: for a value that cannot be.
        ConfigurationError: for a set policy that nobody has.

    """
    import os

    from msgspec.structs import replace

    from exo.gpu.vocabulary.request import Request

    if options["all_devices"] and (
        options["runtime"] or options["devices"] or options.get("device_class")
    ):
        raise click.UsageError("--all-devices cannot go with --on, --class or --device")
    fields = {
        "memory_bytes" if name == "memory" else name: value for name, value in options.items()
    }
    given = {
        name: value
        for name, value in fields.items()
        # By identity, since a share or a limit of 0 is no False but a value to be judged.
        if name in Request.__struct_fields__
        and not (value is None or value is False or value == ())
    }
    if given.get("memory_bytes") == AUTO:
        from exo.gpu.cli.learned_memory import memory_fields

        given |= memory_fields(given.get("kind", ""))
    base: Request | None = options.get("base")
    if base is None:
        if "policy" not in given:
            from exo.gpu.nodes.policies import default_policy

            given["policy"] = default_policy(os.environ)
        return Request(holder=holder, **given)
    return replace(base, holder=base.holder or holder, **given)
