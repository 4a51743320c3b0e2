"""A stack behind an edge: a published service that asks its sibling, a worker, a database, and its users."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lastgood.core.config import ContainersConfig
from lastgood.targets.compose import ComposeTarget
from tests.contract.rigs.clock import CLOCK
from tests.contract.rigs.compose import ComposeWorld

# Asks its sibling by the name that both have always used, and says what it and the sibling are.
# In one piece, with a header: httpd takes the first bytes of anything else for a line of its own.
FRONT: Final = """\
mkdir -p /www/cgi-bin
cat > /www/cgi-bin/ask <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\nVERSION-%s' "$(wget -q -O - http://api:8080/)"
END
chmod 755 /www/cgi-bin/ask
exec httpd -f -p 8080 -h /www
"""

# A browser waits for longer; an edge that holds requests counts on that.
PATIENCE_S: Final = 30.0


class EdgeWorld(ComposeWorld):
    """web (published) asks api (a sibling by name); a worker that answers nobody; a database."""

    def __init__(self, folder: Path, *, address: str = "127.0.0.1") -> None:
        super().__init__(folder, address=address)
        self.services["api"] = self.service("api", expose=["8080"])
        self.write()
        self.version("0")

    def version(self, version: str) -> None:
        """Give every service an image that says so."""
        self.image("web", version, script=FRONT.replace("VERSION", version))
        self.image("api", version)
        self.image("worker", version)

    def section(self, **edge: object) -> dict[str, object]:
        """The `containers` of lastgood.yaml. edge: its `edge`, left out where there is none."""
        section: dict[str, object] = {
            "compose": {"project": self.project},
            "services": ["api", "web", "worker"],
            "workers": ["worker"],
            "boot": "20s",
            "stop": "1s",
        }
        if edge:
            files = ["docker-compose.yml", "docker-compose.edge.yml"]
            section |= {"compose": {"project": self.project, "files": files}, "edge": edge}
        return section

    def settings(self, **edge: object) -> ContainersConfig:
        return ContainersConfig.model_validate(self.section(**edge))

    def behind(self, config: ContainersConfig) -> ComposeTarget:
        return ComposeTarget(config, root=self.root, state=self.root / ".lastgood", clock=CLOCK)

    def answer(self) -> str:
        """What users see: the release of web, and that of the api which it asked."""
        return self.page("/cgi-bin/ask", patience_s=PATIENCE_S).strip()

    def up(self, *files: str) -> None:
        self.compose(*(word for file in files for word in ("--file", file)), "up", "--detach", "--wait")


@contextmanager
def traffic(world: EdgeWorld, *, pause_s: float = 0.01) -> Iterator[Counter[str]]:
    """Ask all the time, three users with this pause after each answer. What was answered, counted; what failed is told
    by its name."""
    answers: Counter[str] = Counter()
    over = threading.Event()

    def ask() -> None:
        while not over.wait(pause_s):
            try:
                answers[world.answer()] += 1
            except OSError as error:
                answers[f"failed: {error}"] += 1

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()
