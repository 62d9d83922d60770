"""Ray's jobs API: submit a command, follow it through lost connections, stop it.

A job lives in its cluster. It runs once, its id cannot be used again, and its log stops when the connection does
(ray-project/ray#57002). Attempts are therefore numbered, and a log is read until the job's own state says that it
ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.dispatch.ray_connection import use_token_authentication
from orchestrator.errors import Outage, UserError
from orchestrator.secrets import shown

REQUEST_S = 60.0
"""How long the head may take to answer one request. Ray's client waits without limit."""
SILENCE_S = 20.0
"""After this time without a line of the log, the job's state is asked for."""
POLL_S = 3.0
"""How often the log is read where it cannot be followed."""
PATIENCE_S = 600.0
"""How long a head may stay away while a job is followed."""
STOP_S = 60
"""How long a job may take to stop by itself. Ray kills it after 3 s by default."""

_STATUS = re.compile(r"status code (\d+)")
_LARGEST = 5
"""Files that are named where a folder is too large."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One job of a sweep."""

    id: str
    number: int
    """1 for the first attempt."""
    state: str
    """As Ray names it: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    exit_code: int | None
    """Of the command, where it ran to its end."""
    metadata: Mapping[str, str]

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.state in ("STOPPED", "SUCCEEDED", "FAILED")


class JobServer:
    """The jobs API of a cluster."""

    def __init__(self, address: str | None) -> None:
        """Connect.

        Args:
            address: `http://host:8265`; None for `RAY_API_SERVER_ADDRESS`, `RAY_ADDRESS` or this machine.

        Raises:
            UserError: no head answers there, or it refuses this user.
        """
        # Ray prefers these variables to an argument.
        if address is not None:
            os.environ["RAY_API_SERVER_ADDRESS"] = address
        given = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
        self.address = shown(given or "http://127.0.0.1:8265")
        use_token_authentication(local=False)
        import ray
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.ERROR)

        class Client(JobSubmissionClient):
            def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
                return super()._do_request(method, endpoint, timeout=REQUEST_S, **options)

        with self._explained(connecting=True):
            self._client = Client(given or "http://127.0.0.1:8265")
        self.ray_here, self.ray_there = ray.__version__, str(self._client._server_ray_version)

    def attempts(self, prefix: str) -> list[Attempt]:
        """The attempts whose id is `prefix-NUMBER`, first to last."""
        with self._explained():
            jobs = self._client.list_jobs()
        pattern = re.compile(re.escape(prefix) + r"-(\d+)")
        found = []
        for job in jobs:
            match = pattern.fullmatch(job.submission_id or "")
            if match:
                found.append(
                    Attempt(
                        id=job.submission_id,
                        number=int(match[1]),
                        state=str(job.status.value),
                        message=job.message or "",
                        exit_code=job.driver_exit_code,
                        metadata=job.metadata or {},
                    )
                )
        return sorted(found, key=lambda attempt: attempt.number)

    def running(self, start: str) -> list[str]:
        """The ids that begin so of jobs that have not ended."""
        with self._explained():
            jobs = self._client.list_jobs()
        ids = [job.submission_id or "" for job in jobs if not job.status.is_terminal()]
        return sorted(each for each in ids if each.startswith(start))

    def submit(
        self,
        command: str,
        *,
        prefix: str,
        number: int,
        folder: Path,
        excludes: Sequence[str],
        variables: Mapping[str, str],
        metadata: Mapping[str, str],
    ) -> str:
        """Upload a folder, and run a command in its copy on the head; the job's id.

        Args:
            command: for the shell.
            prefix: of the job's id.
            number: of the attempt.
            folder: what is uploaded, without what its `.gitignore` and `.rayignore` name.
            excludes: more that is left out, as lines of a `.gitignore`.
            variables: of the command's environment. Ray shows them.
            metadata: kept with the job.

        Raises:
            UserError: the folder is too large.
            Outage: the head went away.
        """
        environment = {
            "working_dir": str(folder),
            "excludes": list(excludes),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), **variables},
        }
        with self._explained(folder=folder, excludes=excludes):
            job: str = self._client.submit_job(
                entrypoint=command,
                submission_id=f"{prefix}-{number}",
                runtime_env=environment,
                metadata=dict(metadata),
            )
        return job

    def log(self, job: str) -> str:
        """What a job has printed so far."""
        with self._explained():
            text: str = self._client.get_job_logs(job)
        return text

    def stop(self, job: str) -> None:
        """Ask a job to end, by SIGTERM; after `STOP_S` Ray kills it."""
        with self._explained():
            self._client.stop_job(job)

    def follow(self, prefix: str, number: int, write: Callable[[str], None], say: Callable[[str], None]) -> Attempt:
        """Write the log of a job until it ends, also when the connection is lost meanwhile; the ended attempt.

        Args:
            prefix: of the job's id.
            number: of the attempt.
            write: takes the parts of the log.
            say: takes what happens to the connection.

        Raises:
            Outage: the head stayed away for `PATIENCE_S`, or no longer knows the job.
        """
        log = _Log(write)
        away: float | None = None
        while True:
            try:
                attempt = self._attempt(prefix, number)
                if away is not None:
                    say(f"the head is back after {time.monotonic() - away:.0f} s")
                    away = None
                if attempt.is_over:
                    with _away_if_out():
                        log.rest(self.log(attempt.id))
                    return attempt
                if asyncio.run(self._tail(prefix, number, log)):
                    time.sleep(1.0)
                else:
                    # The connection was cut, or a proxy lets none of this kind through.
                    self._attempt(prefix, number)
                    with _away_if_out():
                        log.rest(self.log(attempt.id))
                    time.sleep(POLL_S)
            except _Away as error:
                if away is None:
                    away = time.monotonic()
                    say(f"the connection to the head is lost ({error}); trying again. The job goes on if the head does")
                if time.monotonic() - away > PATIENCE_S:
                    raise Outage(
                        f"the head at {self.address} has not answered for {PATIENCE_S / 60:.0f} minutes",
                        next_step="when it is back, run the same command again: a job that still runs is followed, "
                        "and a new one resumes the sweep",
                    ) from error
                time.sleep(3.0)

    def _attempt(self, prefix: str, number: int) -> Attempt:
        with _away_if_out():
            found = next((each for each in self.attempts(prefix) if each.number == number), None)
        if found is None:
            raise Outage(
                f"the head no longer knows the job {prefix}-{number}: it was started anew, which ends its jobs",
                next_step="run the same command again: it resumes the sweep",
            )
        return found

    async def _tail(self, prefix: str, number: int, log: _Log) -> bool:
        """Write the log until it ends, which is True, or the connection does."""
        import aiohttp

        log.begin()
        lines = self._client.tail_job_logs(f"{prefix}-{number}")
        waiting: asyncio.Future[str | None] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(lines, None))
                done, _ = await asyncio.wait({waiting}, timeout=SILENCE_S)
                if not done:
                    if (await asyncio.to_thread(self._attempt, prefix, number)).is_over:
                        return True
                    continue
                text, waiting = waiting.result(), None
                if text is None:
                    return True
                log.add(text)
        except (OSError, RuntimeError, TimeoutError, aiohttp.ClientError):  # Ray raises RuntimeError for a lost one
            return False
        finally:
            if waiting is not None:
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):  # of a connection that is given up
                    await waiting

    @contextlib.contextmanager
    def _explained(
        self, *, connecting: bool = False, folder: Path | None = None, excludes: Sequence[str] = ()
    ) -> Iterator[None]:
        """Turn what Ray raises into what a user can act on."""
        try:
            yield
        except (UserError, Outage):
            raise
        except Exception as error:  # Ray raises RuntimeError for every answer, and passes on what `requests` raises
            text = str(error)
            place = {"place": "--address", "value": self.address}
            if type(error).__name__ == "AuthenticationError" or "authentication" in text.lower():
                raise UserError(
                    "the cluster refuses this user: its token is missing or wrong",
                    **place,
                    next_step="put the head's token (there: `ray get-auth-token`) into ~/.ray/auth_token or "
                    "RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token",
                ) from error
            status = _STATUS.search(text)
            if folder is not None and (
                (status and status[1] == "413") or "exceeds the maximum size" in text or "too large" in text.lower()
            ):
                raise UserError(
                    "this folder is too large to be submitted: Ray accepts about 100 MiB",
                    place=str(folder),
                    next_step="name what the job does not need in a file .rayignore, line by line as in .gitignore. "
                    f"The largest files: {_largest(folder, excludes)}",
                ) from error
            if connecting and "404" in text:
                raise UserError(
                    "what answers there is no jobs API of Ray",
                    **place,
                    next_step="name the address of the head's dashboard, http://HOST:8265 by default",
                ) from error
            if connecting and not isinstance(error, TimeoutError):
                raise UserError(
                    f"no Ray head answers at {self.address}: {_first_line(error)}",
                    place="--address",
                    next_step="name the address of the head's dashboard, --address http://HOST:8265 (or "
                    "RAY_API_SERVER_ADDRESS); cluster/local/head.sh starts a head on this machine",
                ) from error
            if "No available agent" in text:
                raise Outage(
                    f"the head at {self.address} cannot start jobs: its agent does not answer",
                    next_step="run the same command again; if that does not help, restart the head, as another program "
                    "may have taken the agent's port (cluster/local/stop.sh, then cluster/local/head.sh)",
                ) from error
            raise Outage(
                f"the head at {self.address} did not do as asked: {_first_line(error)}",
                next_step="run the same command again",
            ) from error


class _Away(Exception):
    """The head does not answer."""


@contextlib.contextmanager
def _away_if_out() -> Iterator[None]:
    try:
        yield
    except Outage as error:
        raise _Away(error.what) from error


class _Log:
    """Writes each part of a log once, although every connection sends it from its beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = 0
        self._sent = 0

    def begin(self) -> None:
        """A new connection."""
        self._sent = 0

    def add(self, text: str) -> None:
        """The next part that the connection sent."""
        new = text[max(self._written - self._sent, 0) :]
        self._sent += len(text)
        if new:
            self._write(new)
            self._written += len(new)

    def rest(self, whole: str) -> None:
        """The whole log."""
        self.begin()
        self.add(whole)


def _largest(folder: Path, excludes: Sequence[str]) -> str:
    """The largest files that would be uploaded."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _get_excludes, get_excludes_from_ignore_files

    quiet = logging.getLogger("phasefront.submit")
    quiet.setLevel(logging.WARNING)
    ignored = [
        *get_excludes_from_ignore_files(folder, include_gitignore=True, logger=quiet),
        _get_excludes(folder, [*get_runtime_env_default_excludes(), *excludes]),
    ]
    sizes = []
    for parent, folders, files in os.walk(folder):
        at = Path(parent)
        folders[:] = [name for name in folders if not any(each(at / name) for each in ignored)]
        for name in files:
            with contextlib.suppress(OSError):  # removed meanwhile
                if not any(each(at / name) for each in ignored):
                    sizes.append(((at / name).stat().st_size, str((at / name).relative_to(folder))))
    sizes.sort(reverse=True)
    return ", ".join(f"{name} ({size / 2**20:.0f} MiB)" for size, name in sizes[:_LARGEST])


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines() if line.strip())
    return next(lines, type(error).__name__)[:300]
