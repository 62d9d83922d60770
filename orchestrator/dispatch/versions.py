"""Which nodes have another version of the job than the driver. They get no worker: its trials would be other trials."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from orchestrator.dispatch.base import PackFailed, PackTask
from orchestrator.dispatch.source import Source
from orchestrator.errors import UserError
from orchestrator.printable import last_line

SHOWN = 3
"""Nodes that the error names."""
SAME = "give all nodes and the driver the same one: the same image or installation, or `ray job submit --working-dir .`"


class JobVersions:
    """The driver's source of the job, and the nodes with another one.

    Args:
        source: the driver's; None to accept any.
        local: whether this machine is the only node: its workers differ only if the job is edited meanwhile.
    """

    def __init__(self, source: Source | None, *, local: bool) -> None:
        self._source, self._local = source, local
        self._differing: dict[str, str] = {}
        """Node -> its name, and what differs."""

    def stamped(self, task: PackTask) -> PackTask:
        """The pack with the driver's source."""
        return task if self._source is None else replace(task, source=self._source.text)

    def differs(self, node: str) -> bool:
        """Whether the node has another version."""
        return node in self._differing

    def refused(self, node: str, name: str, event: PackFailed) -> str:
        """A worker of the node refused a pack; return what to tell the user, empty if it was told before."""
        if node in self._differing:
            return ""
        theirs = event.source
        if theirs is None or self._source is None:
            what = last_line(event.error)
        elif self._local:
            what = ", ".join(self._source.other_files(theirs)[:SHOWN]) or "its libraries"
        else:
            what = self._source.differences(theirs)
        self._differing[node] = what if self._local else f"node {name}: {what}"
        if self._local:
            return f"the job was edited while the sweep runs ({what}): no new worker starts, running ones go on"
        return f"node {name} gets no trials: its version of the job is not the driver's ({what}); next: {SAME}"

    def error(self, nodes: Collection[str]) -> UserError | None:
        """The error of a pool without workers, if these nodes are all that there are and one of them differs."""
        texts = [self._differing[node] for node in sorted(nodes) if node in self._differing]
        if not texts:
            return None
        more = [f"{len(texts) - SHOWN} more nodes"] if len(texts) > SHOWN else []
        shown = "; ".join([*texts[:SHOWN], *more])
        if self._local:
            return UserError(
                f"the job was edited while the sweep ran, and no worker with the earlier version is left: {shown}",
                place="job",
                next_step=(
                    "run the same command again: missing trials train with the new version. If their curves differ "
                    "from the earlier ones, raise the job's `version` first"
                ),
            )
        return UserError(
            f"no node has the driver's version of the job: {shown}",
            place="job",
            next_step=f"{SAME}. If the job was edited while the sweep ran, run the command again",
        )
