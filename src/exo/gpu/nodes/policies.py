"""Policies by name: the one that people set, and those that other packages bring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exo.gpu.configuration import load_configuration
from exo.gpu.vocabulary.errors import ConfigurationError, InvalidValue, UnknownName
from exo.gpu.vocabulary.request import Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exo.gpu.scheduling.policies import Policy

ENTRY_POINTS = "exo_gpu.policies"
"""The group in which a package names a :class:`~exo.gpu.scheduling.policies.Policy` of its own."""


def default_policy(environ: Mapping[str, str]) -> str:
    """The policy of requests that name none: as it is set, else ``balanced``.

    Raises:
        ConfigurationError: naming the source, for one that nobody has or that is none.

    """
    configuration = load_configuration(environ)
    name, source = configuration.value("policy"), configuration.sources.get("policy")
    if source is not None:
        try:
            policies_for(Request(policy=name))
        except (InvalidValue, UnknownName) as error:
            raise ConfigurationError(f"{source}: {error}") from None
    return name


def policies_for(request: Request) -> Mapping[str, Policy]:
    """The policy that the request names beside the presets; empty for a preset.

    With a name that nobody has, every installed policy is there without being loaded, so that the
    error can tell the near spelling.

    Raises:
        InvalidValue: where what the entry point names is no policy.
        UnknownName: for a name that neither a preset nor a package has.

    """
    from exo.gpu.scheduling.policies import POLICIES, Policy

    if request.policy in POLICIES:
        return {}
    from importlib.metadata import entry_points

    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if request.policy not in found:
        raise UnknownName("policy", request.policy, {*POLICIES, *found})
    loaded: Any = found[request.policy].load()
    if not isinstance(loaded, Policy):
        expected = f"the name of a Policy ({found[request.policy].value} is none)"
        raise InvalidValue("policy", request.policy, expected)
    return {request.policy: loaded}
