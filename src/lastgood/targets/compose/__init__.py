"""Docker Compose: the services that may go back, on one machine, without an edge in front of them (rung L4)."""

from lastgood.targets.compose.survey import Survey, SurveyedPostgres, survey
from lastgood.targets.compose.target import ComposeTarget

__all__ = ["ComposeTarget", "Survey", "SurveyedPostgres", "survey"]
