"""Code that services have from the checkout by bind mounts: a release starts from a copy of its own.

A checkout changes under a running container, and with the next release it holds other code. Copies lie in the state
directory, named by their content, so that a service whose code did not change is not started anew. They are mounted
read-only, as the compose file mounts the original: whoever writes into its code is refused before (`obstacles`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from shlex import quote
from typing import Final

from lastgood.core.errors import Refused
from lastgood.core.release import KeptCode
from lastgood.targets import tree
from lastgood.targets.compose.obstacles import bound_code
from lastgood.targets.compose.project import Project
from lastgood.targets.compose.stack import Stack

LIMIT_BYTES: Final = 2 * 1024**3
"""Code with all its packages is smaller; what is larger holds data."""


def keep_code(stack: Stack, project: Project, service: str) -> tuple[Project, tuple[KeptCode, ...]]:
    """Copy what a service runs from the checkout, and return the model that mounts the copies. Nothing to do for most.

    Raises Refused when something cannot be copied, or a copy was changed since.
    """
    kept: list[KeptCode] = []
    for code in bound_code(project, service, root=stack.root):
        # What the service mounts over its code it does not see; of that, the place to mount it on must be there.
        below = [str(m["target"]) for m in project.mounts(service) if _is_below(str(m["target"]), code.inside)]
        hollow = {code.source / Path(target).relative_to(code.inside) for target in below}
        # another stack of the folder has its state beside: its secrets, and other files after each of its commands
        others = {journal.parent for journal in stack.root.glob("*/journal.sqlite")}
        left_out = {code.source / ".git", stack.state, *stack.private, *others}
        try:
            size = tree.size_bytes(code.source, leave_out=left_out | hollow)
            if size > LIMIT_BYTES:
                raise Refused(
                    f"{code.source}, code of {service}, holds {size / 1e9:.1f} GB, and every release would keep a "
                    "copy: mount the folder of the code alone, or copy it into the image",
                    hint=f"du -h --max-depth 1 {quote(str(code.source))}",
                )
            copy = tree.keep_by_content(code.source, stack.shelf.code, leave_out=left_out, hollow=hollow)
        except FileExistsError as error:
            raise Refused(f"the kept code of {service} is in the way: {error}", hint="lastgood releases") from error
        except (OSError, shutil.Error) as error:
            raise Refused(f"{code.source}, code of {service}, cannot be copied: {error}", hint="df -h") from error
        project = project.with_source(service, code.inside, str(copy.path))
        kept.append(KeptCode(source=code.relative, inside=code.inside, tree=copy.artifact))
    return project, tuple(kept)


def _is_below(inside: str, other: str) -> bool:
    return inside != other and Path(inside).is_relative_to(other)
