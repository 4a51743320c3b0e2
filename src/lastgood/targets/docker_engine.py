"""A connection to the Docker engine through its SDK, for one piece of work, and what its failures mean.

An engine that was restarted is simply asked again. Each request has a deadline; what the engine does not answer is
Retryable, and OutcomeUnknown where a change may have been made.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

import docker
import docker.errors
import requests
import requests.exceptions
from docker.utils.utils import kwargs_from_env

from lastgood.core.errors import LastgoodError, OutcomeUnknown, Refused, Retryable
from lastgood.targets.docker_host import docker_host

REQUEST_S: Final = 15.0
PULL_S: Final = 60.0
"""Without a word from the engine: while it pulls it tells its progress all the time."""
RETRY_S: Final = 2.0
HINT: Final = "docker version"
_DEFAULT_HOST: Final = "unix:///var/run/docker.sock"
_LANGUAGE: dict[str, str] = {}
"""The version of the API that each engine was spoken to in last: asked once and not at each connection."""


class _Client(docker.APIClient):
    """The SDK's own, but for a pull, to which it gives no deadline at all."""

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **settings: Any) -> requests.Response:  # noqa: ANN401 # what requests takes
        settings["timeout"] = settings.get("timeout") or PULL_S
        return super().request(method, url, *args, **settings)


@contextmanager
def opened(env: Mapping[str, str]) -> Generator[docker.APIClient]:
    """Open a connection. Raises Retryable when no engine answers, Refused when it is not known which.

    env: names the engine, as it does for the docker client.
    """
    host = docker_host(env) or _DEFAULT_HOST
    _knock(host)
    with asking():
        arguments = cast("dict[str, Any]", kwargs_from_env(environment={**env, "DOCKER_HOST": host}))
        api = _Client(**arguments, version=_LANGUAGE.get(host, "auto"), timeout=int(REQUEST_S))
    _LANGUAGE[host] = api.api_version
    try:
        yield api
    except LastgoodError:
        _LANGUAGE.pop(host, None)  # it may be another engine by now
        raise
    finally:
        api.close()


def _knock(host: str) -> None:
    """Connect to a local socket once, before the SDK does: it leaves its socket open when nobody listens."""
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(REQUEST_S)
            try:
                probe.connect(host.removeprefix("unix://"))
            except OSError as error:
                raise Retryable(
                    f"no docker engine answers at {host}: {error.strerror or error}", delay_s=RETRY_S, hint=HINT
                ) from error


@contextmanager
def asking(*, changing: str = "") -> Generator[None]:
    """Turn what the SDK raises into the house's errors. changing: what was under way, empty when only looking."""
    try:
        yield
    except requests.exceptions.ReadTimeout as error:
        if changing:
            raise OutcomeUnknown(f"the docker engine did not answer while {changing}", hint=HINT) from error
        raise Retryable("the docker engine does not answer", delay_s=RETRY_S, hint=HINT) from error
    except docker.errors.APIError as error:
        said = str(error.explanation or error)
        if error.is_server_error():
            # it began, and failed at something: a container that was to start may run without its network
            if changing:
                raise OutcomeUnknown(f"the docker engine failed while {changing}: {said}", hint=HINT) from error
            raise Retryable(f"the docker engine failed: {said}", delay_s=RETRY_S, hint=HINT) from error
        raise Refused(f"the docker engine refused{' ' + changing if changing else ''}: {said}", hint=HINT) from error
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        if changing and not _never_sent(error):
            raise OutcomeUnknown(f"the docker engine went away while {changing}", hint=HINT) from error
        raise Retryable("the docker engine does not answer", delay_s=RETRY_S, hint=HINT) from error


@contextmanager
def after_a_change(doing: str) -> Generator[None]:
    """Say of what fails within that nobody knows what came of it: Refused and Retryable promise that nothing changed,
    and something had by then. doing: what is under way."""
    try:
        yield
    except (Refused, Retryable) as error:
        raise OutcomeUnknown(f"{doing}: {error.message}", hint=error.hint) from error


def _never_sent(error: BaseException) -> bool:
    """Whether nobody listened at all: somewhere below, since each layer wraps the one that it stands on."""
    if isinstance(error, ConnectionRefusedError | FileNotFoundError | socket.gaierror):
        return True
    below = [error.__cause__, error.__context__, *cast("tuple[object, ...]", error.args)]
    return any(_never_sent(inner) for inner in below if isinstance(inner, BaseException))
