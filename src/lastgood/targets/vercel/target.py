"""The Vercel target: observes one project and its production domains, and takes the frontend's step of a rollback.

Two witnesses are asked, the API and the domains themselves: the API has said "succeeded" while a domain went on serving
the bad deployment for 25 minutes. The page wins. Where the page does not tell, the domain's alias is enough to say that
a domain is still elsewhere, and not enough to say that it is back: that is left open, in so many words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lastgood.core.config import VercelConfig
from lastgood.core.errors import LastgoodError, NeedsHuman, OutcomeUnknown, Refused
from lastgood.core.facts import FrontendDeployment, FrontendFacts
from lastgood.core.plan import ReturnFrontend, Role, Step
from lastgood.core.ports import Clock
from lastgood.core.report import Check
from lastgood.targets.vercel import site
from lastgood.targets.vercel.api import VercelApi
from lastgood.targets.vercel.going_back import POLL_S, go_back
from lastgood.targets.vercel.shapes import READY, Deployment, Project
from lastgood.targets.vercel.time_left import TimeLeft


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """One domain. told: by its page, as `site.deployment_of`. alias: by the API, empty if it could not be told.

    fault: why there was no page.
    """

    domain: str
    told: str
    alias: str
    fault: str

    def shown(self, production: str) -> str:
        """What counts as seen there, as FrontendFacts.domains has it."""
        return self.told or (self.alias if self.alias != production else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """The project, its production deployments newest first, its domains."""

    project: Project
    deployments: tuple[Deployment, ...]
    looks: tuple[_Look, ...]


class VercelTarget:
    """core.ports.Frontend. Raises ConfigError when the token cannot be sent as one."""

    role = Role.FRONTEND

    def __init__(self, config: VercelConfig, *, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._api = VercelApi(config, clock)

    def observe(self) -> FrontendFacts:
        observed_at = self._clock.now()
        view = self._view()
        production = view.project.production_id
        return FrontendFacts(
            observed_at=observed_at,
            production=production,
            auto_assign=view.project.auto_assign,
            busy=view.project.busy,
            domains=tuple((look.domain, look.shown(production)) for look in view.looks),
            deployments=tuple(
                FrontendDeployment(
                    id=one.id,
                    commit=one.commit,
                    state=one.state,
                    created_at=one.created_at,
                    can_return=one.state == READY and one.candidate is not False,
                )
                for one in view.deployments
            ),
        )

    def _view(self) -> _View:
        time = TimeLeft(self._clock, self._config.timeout)
        project = self._api.project(time)
        deployments = self._api.deployments(project.id, time)
        # production may be older than the listing reaches
        known = {one.id: one.commit for one in (*deployments, *([project.production] if project.production else []))}
        return _View(project=project, deployments=deployments, looks=tuple(self._looks(known, time)))

    def _looks(self, known: Mapping[str, str], time: TimeLeft) -> Iterator[_Look]:
        for domain in self._config.domains:
            address = self._config.site.replace("{domain}", domain)
            page = site.fetch(address, deadline_s=time.for_a_call())
            alias = self._alias(domain, time)
            told = site.deployment_of(page, known, likely=(alias,))
            yield _Look(domain=domain, told=told, alias=alias, fault=page.fault)

    def _alias(self, domain: str, time: TimeLeft) -> str:
        """The deployment that the API says the domain points at; empty if it does not say."""
        try:
            return self._api.deployment(domain, time).id
        except LastgoodError:
            return ""

    def apply(self, step: Step) -> None:
        action = step.action
        if not isinstance(action, ReturnFrontend):
            raise Refused(f"{step.name} is a step for {step.role.value}, not for the frontend", hint="lastgood plan")
        time = TimeLeft(self._clock, step.deadline_s)
        go_back(self._api, action.deployment, time)
        self._await_domains(action.deployment, time)

    def _await_domains(self, wanted: str, time: TimeLeft) -> None:
        """Look until every domain was seen and none shows another deployment. A domain that does not follow is not ours
        to force; what nobody could fetch in all that time is for the checks afterwards to tell."""
        if not self._config.domains:
            return
        try:
            deployment = self._api.deployment(wanted, time)
        except LastgoodError as error:
            raise OutcomeUnknown(f"{wanted} is production; its domains could not be told: {error.message}") from error
        behind: dict[str, str] = {}
        while True:
            looks = tuple(self._looks({wanted: deployment.commit}, time))
            for look in looks:
                if look.shown(wanted) not in ("", wanted):
                    behind[look.domain] = look.shown(wanted)
                elif not look.fault:
                    # one that cannot be fetched any more has not followed by that
                    behind.pop(look.domain, None)
            unseen = any(look.fault for look in looks)
            if not behind and (not unseen or time.over):
                return
            if behind and time.over:
                still = ", ".join(f"{domain} still shows {shown}" for domain, shown in behind.items())
                raise NeedsHuman(
                    f"{wanted} is production at vercel, but {still}",
                    hint=f"vercel alias set {deployment.host or wanted} {next(iter(behind))}",
                )
            time.wait(POLL_S)

    def checks(self, deployment: str) -> tuple[Check, ...]:
        view = self._view()
        production = view.project.production_id
        same = production == deployment
        detail = production if same else f"{production or 'none'}, expected {deployment}"
        return (
            Check(name="frontend production", passed=same, detail=detail),
            *(_check(look, deployment) for look in view.looks),
        )

    def resume_auto_assign(self) -> None:
        time = TimeLeft(self._clock, self._config.timeout)
        project = self._api.project(time)
        if project.auto_assign:
            return
        self._api.let_pushes_go_live(project.id, time)
        if not self._api.project(time).auto_assign:
            raise OutcomeUnknown("vercel took the setting, and does not show it yet", hint="lastgood doctor")


def _check(look: _Look, wanted: str) -> Check:
    """What a domain proves. A page that answers and is silent leaves it to its alias, and the detail says so."""
    alias = f"its alias points at {look.alias}" if look.alias else "vercel does not know the domain"
    if look.fault:
        passed, detail = False, f"{look.fault}; {alias}"
    elif look.told:
        passed = look.told == wanted
        detail = f"shows {look.told}" + ("" if passed else f", expected {wanted}; {alias}")
    else:
        passed, detail = look.alias == wanted, f"{alias}; its page does not say which deployment it is"
    return Check(name=f"domain {look.domain}", passed=passed, detail=detail)
