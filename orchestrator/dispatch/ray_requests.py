"""What the drivers on a cluster ask Ray's autoscaler for.

Ray keeps one request for the whole cluster: the newest, until another one replaces it, also if its driver has died.
Therefore each driver keeps its own in Ray's internal store, and Ray is told the sum of those whose drivers live.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

_PREFIX = b"phasefront/requests/"


def ask(bundles: Sequence[Mapping[str, float]]) -> None:
    """Replace this driver's request; an empty one withdraws it."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

    own = _PREFIX + ray.get_runtime_context().get_job_id().encode()
    if bundles:
        _internal_kv_put(own, json.dumps(list(bundles)).encode(), overwrite=True)
    else:
        _internal_kv_del(own)
    _tell()


def withdraw_left() -> None:
    """Withdraw the requests of drivers that were killed."""
    if any(_is_left(key) for key in _keys()):
        _tell()


def _tell() -> None:
    """Ask for what all drivers want that live.

    Again, if that has changed meanwhile: of drivers that ask at the same time, the last one to tell has heard of all.
    """
    from ray.autoscaler.sdk import request_resources

    told: list[dict[str, float]] | None = None
    while (wanted := _wanted()) != told:
        request_resources(bundles=wanted)
        told = wanted


def _wanted() -> list[dict[str, float]]:
    """The requests of all drivers that live; the others are forgotten."""
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get

    wanted: list[dict[str, float]] = []
    for key in sorted(_keys()):
        if _is_left(key):
            _internal_kv_del(key)
        elif (text := _internal_kv_get(key)) is not None:  # None: it has just been withdrawn
            wanted += json.loads(text)
    return wanted


def _keys() -> list[bytes]:
    from ray.experimental.internal_kv import _internal_kv_list

    return [bytes(key) for key in _internal_kv_list(_PREFIX)]


def _is_left(key: bytes) -> bool:
    """Whether the driver of a request has ended. A Ray client cannot know, and takes all for alive."""
    from ray._private import worker
    from ray._private.state import jobs

    if worker._global_node is None:
        return False
    job = key.removeprefix(_PREFIX).decode()
    return not any(known["JobID"] == job and not known["IsDead"] for known in jobs())
