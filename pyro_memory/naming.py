"""Names that keep two instances of one class apart in Pyro's global parameter store."""

from itertools import count

_instances = count(1)


def unique_name(module: object) -> str:
    """Names a root module: its class and a number that no other module of this process has."""
    return f"{type(module).__name__}_{next(_instances)}"
