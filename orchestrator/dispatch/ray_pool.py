"""The pool of workers on Ray: on this machine, or on the cluster at `RAY_ADDRESS`.

Ray is imported in this folder alone, and only when a pool is made.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.dispatch.capacity import Request
from orchestrator.dispatch.pool import PooledDispatcher
from orchestrator.dispatch.ray_cluster import RayCluster
from orchestrator.dispatch.ray_connection import connect
from orchestrator.dispatch.ray_engine import RayEngine
from orchestrator.dispatch.ray_nodes import alive_nodes
from orchestrator.dispatch.source import Source

WARM_S = 25.0
"""How long to wait for a new pool before packs go to the workers that are ready."""


class RayDispatcher(PooledDispatcher):
    """A pool of warm actors.

    Args:
        job: the job that workers load when they start; None for none yet.
        request: how many workers, and what each takes; None for the defaults. Without a number of workers, as many as
            the cluster holds, following nodes that come and go. A worker has as many threads as it takes CPU cores.
        source: the driver's source of the job, which workers must have; None to accept any.
        say: called with a line to show while the cluster does not answer.
        connected: called once Ray is connected: it then has signal handlers of its own, which end this process with a
            stack trace, also while workers start.
        stopping: whether the run is being stopped; then workers are not waited for.

    Raises:
        UserError: no cluster, no access, or no device of the kind asked for.
    """

    def __init__(
        self,
        *,
        job: str | None = None,
        request: Request | None = None,
        source: Source | None = None,
        say: Callable[[str], None] = print,
        connected: Callable[[], None] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        request = request or Request()
        cluster = RayCluster(owned=connect(request.local_node()), say=say)
        try:
            connected()
            shape = request.shape(node.total for node in alive_nodes().values())
            if cluster.local and shape.workers < 1:
                raise request.no_room(shape)
            self._ray = RayEngine(cluster, need=shape.need, device=shape.device, job=job)
            super().__init__(
                self._ray, workers=request.workers, grows=not cluster.local, source=source, max_share=request.max_share
            )
            # Starting is not counted as training. On a cluster only the first worker is awaited: nodes may be joining.
            self.await_ready(timeout_s=WARM_S, all_of_them=cluster.local, stopping=stopping)
        except BaseException:
            cluster.close()
            raise

    @property
    def process_ids(self) -> list[int]:
        """The workers' processes, on whichever node; waits until they are ready."""
        return self._ray.process_ids
