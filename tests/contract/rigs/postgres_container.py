"""A Postgres in a container, reached at the container's address, with the tools inside."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lastgood.core.config import PostgresConfig
from lastgood.core.errors import LastgoodError
from lastgood.core.secret import Secret
from lastgood.targets.postgres.connect import connect
from tests.contract.rigs.postgres_world import PostgresWorld, opened

IMAGE = "hypercode/postgres:15"
IMAGES = Path(__file__).parents[3] / "examples" / "hypercode" / "images" / "base-images.sh"
BOOT_S = 60
SETTINGS = ("-c", "log_line_prefix=%m [%p] %e %a %d ", "-c", "wal_level=logical", "-c", "max_slot_wal_keep_size=4GB")


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], check=True, timeout=120, capture_output=True, text=True)
    return done.stdout.strip()


@contextmanager
def server() -> Iterator[PostgresConfig]:
    """A running server, and how its database `shop` is reached."""
    if not docker("images", "--quiet", IMAGE):
        subprocess.run(["bash", str(IMAGES)], check=True, timeout=600, capture_output=True)
    name = f"lgpg-{secrets.token_hex(4)}"
    env = [
        word
        for pair in ("POSTGRES_USER=shop", "POSTGRES_DB=shop", "POSTGRES_PASSWORD=pass word")
        for word in ("-e", pair)
    ]
    docker("run", "--detach", "--name", name, *env, IMAGE, "postgres", *SETTINGS)
    config = PostgresConfig(name="shop", user="shop", password=Secret("pass word"), container=name)
    try:
        _wait(config)
        yield config
    finally:
        docker("rm", "--force", "--volumes", name)


@contextmanager
def rig(folder: Path) -> Iterator[PostgresWorld]:
    """A world on a server of its own."""
    with server() as config:

        @contextmanager
        def pause() -> Iterator[None]:
            docker("pause", str(config.container))
            try:
                yield
            finally:
                docker("unpause", str(config.container))

        with opened(folder, config, pause) as world:
            yield world


def _wait(config: PostgresConfig) -> None:
    until = time.monotonic() + BOOT_S
    while True:
        try:
            connect(config).close()
        except LastgoodError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return
