"""A registry of its own on loopback, which can be stopped, and whose tags can be lost."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import docker

PROGRAM: Final = "docker-registry"
START_S: Final = 20.0
# Debian's docker-registry is Docker's `registry`, version 2.
CONFIG: Final = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}}}, cache: {{}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class Registry:
    """What is pushed to it lies in `folder`. host: as it stands in the name of an image."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        folder.mkdir(parents=True)
        self._config = folder.with_suffix(".yml")
        self._config.write_text(CONFIG.format(folder=folder, port=port))
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Answer."""
        self._process = subprocess.Popen(
            [PROGRAM, "serve", str(self._config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ends_at = time.monotonic() + START_S
        while time.monotonic() < ends_at:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return
            assert self._process.poll() is None, f"{PROGRAM} ended with {self._process.returncode}"
            time.sleep(0.05)
        raise AssertionError(f"{PROGRAM} does not answer at {self.host}")

    def stop(self) -> None:
        """Be gone. What was pushed is kept."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=10)
            self._process = None

    def push(self, client: docker.DockerClient, image: str, name: str) -> str:
        """Give an image of this host the name, `REPOSITORY:TAG`, here and in the registry. Returns the whole
        reference."""
        repository, tag = f"{self.host}/{name}".rsplit(":", 1)
        client.images.get(image).tag(repository, tag)
        said = str(client.images.push(repository, tag))
        assert "errorDetail" not in said, said
        return f"{repository}:{tag}"

    def lose(self, name: str) -> None:
        """Lose the tag of `REPOSITORY:TAG`, as a clean-up does; what it stood for is still there by its digest."""
        repository, tag = name.rsplit(":", 1)
        repositories = self._folder / "docker" / "registry" / "v2" / "repositories"
        shutil.rmtree(repositories / repository / "_manifests" / "tags" / tag)


@contextmanager
def registry(folder: Path, port: int) -> Iterator[Registry]:
    """A registry for the length of the block."""
    made = Registry(folder, port)
    try:
        yield made
    finally:
        made.stop()
