"""What a production domain shows to somebody who fetches it: the one word that counts after a rollback.

Vercel adds nothing to a page that names its deployment. Where Skew Protection is on, the framework does: Next.js
writes `<html data-dpl-id>` and puts `?dpl=` behind its scripts (vercel.com/docs/skew-protection and pages served by
Vercel, read 2026-11). A team can let its pages say it: `<meta name="commit" content="$VERCEL_GIT_COMMIT_SHA">`, or the
headers x-deployment-id and x-commit. A page that does neither is silent, and nothing is made up for it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lastgood.wire.asking import Answer, NoAnswer, ask
from lastgood.wire.foreign_text import one_line

MAX_BYTES: Final = 4 << 20
_ID: Final = r"[\w-]{1,80}"
# Each looks at a bounded piece of the page at a time, so that no page can make it look for long.
_IN_PAGE: Final = tuple(
    re.compile(pattern.encode())
    for pattern in (rf'\bdata-dpl-id="({_ID})"', rf"[?&;]dpl=({_ID})", rf'<meta name="commit" content="({_ID})"')
)
_SHORT_COMMIT: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a domain answered. marks: what it says of its deployment, ids and commits, the most certain first.

    fault: why there is no page to look at, empty when there is one.
    """

    marks: tuple[str, ...] = ()
    fault: str = ""


def fetch(address: str, *, deadline_s: float) -> Page:
    """Get a page as a stranger would, past every cache on the way. Never raises."""
    # A query that nobody asked before: a cache in between cannot have an answer to it.
    fresh = f"{'&' if '?' in address else '?'}lastgood={secrets.token_hex(8)}"
    answer = ask("GET", f"{address}{fresh}", deadline_s=deadline_s, max_bytes=MAX_BYTES)
    if isinstance(answer, NoAnswer):
        return Page(fault=one_line(answer.reason))
    if answer.status >= 400:
        why = answer.headers.get("x-vercel-error", "")
        return Page(fault=one_line(f"answered {answer.status} {why}"))
    return Page(marks=_marks(answer))


def _marks(answer: Answer) -> tuple[str, ...]:
    named = [answer.headers.get("x-deployment-id", ""), answer.headers.get("x-commit", "")]
    named += [found[1].decode("ascii", "replace") for pattern in _IN_PAGE if (found := pattern.search(answer.body))]
    return tuple(one_line(mark, 80) for mark in named if mark)


def deployment_of(page: Page, known: Mapping[str, str], likely: Sequence[str]) -> str:
    """Return the deployment that the page says it is: its id; its mark where no known deployment has it; empty for a
    silent page.

    known: deployment id -> commit, newest first. likely: ids to prefer where several were built from one commit.
    """
    for mark in page.marks:
        if mark.startswith("dpl_") or mark in known:
            return mark
    for mark in page.marks:
        if found := [one for one, commit in known.items() if _same(commit, mark)]:
            return next((one for one in likely if one in found), found[0])
    return page.marks[0] if page.marks else ""


def _same(commit: str, mark: str) -> bool:
    return bool(commit) and (commit == mark or (len(mark) >= _SHORT_COMMIT and commit.startswith(mark)))
