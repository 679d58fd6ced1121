"""A request as JSON, from a file or standard input: what the options then come on top of."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, BinaryIO

import click

if TYPE_CHECKING:
    from exo.gpu.vocabulary.request import Request


def request_in(
    ctx: click.Context, option: click.Parameter, file: BinaryIO | None
) -> Request | None:
    """The request in a file that holds one JSON object; a click callback.

    Raises:
        UsageError: for what is no request; with the near spelling for a field that does not exist.

    """
    del option
    if file is None:
        return None
    import msgspec

    from exo.gpu.nodes.policies import default_policy
    from exo.gpu.vocabulary.errors import ConfigurationError, UnknownName
    from exo.gpu.vocabulary.request import Request

    try:
        fields = msgspec.json.decode(file.read(), type=dict[str, Any])
        for name in fields:
            if name not in Request.__struct_fields__:
                raise UnknownName("field", name, Request.__struct_fields__)
        if "policy" not in fields:
            fields["policy"] = default_policy(os.environ)
        return Request.from_dict(fields)
    except ConfigurationError:
        raise
    except ValueError as error:
        raise click.UsageError(f"--request: {error}", ctx) from None
