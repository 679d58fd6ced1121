"""Policies that other packages bring: found by their entry points, loaded when one is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exo.gpu.vocabulary.errors import InvalidValue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exo.gpu.scheduling.policies import Policy
    from exo.gpu.vocabulary.request import Request

ENTRY_POINTS = "exo_gpu.policies"
"""The group in which a package names a :class:`~exo.gpu.scheduling.policies.Policy` of its own."""


def policies_for(request: Request) -> Mapping[str, Policy]:
    """The policy that the request names beside the presets; empty for a preset.

    With a name that nobody has, every installed policy is there without being loaded, so that the
    error can tell the near spelling.

    Raises:
        InvalidValue: where what the entry point names is no policy.
        UnknownName: for a name that neither a preset nor a package has.

    """
    from exo.gpu.scheduling.policies import POLICIES, Policy
    from exo.gpu.vocabulary.errors import UnknownName

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
