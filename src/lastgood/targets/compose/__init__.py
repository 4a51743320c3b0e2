"""Docker Compose: the services that may go back, on one machine, with an edge in front of them or without."""

from lastgood.targets.compose.commands import compose_by_hand
from lastgood.targets.compose.edge_setup import EdgePlan, edge_file, own_edge_file, set_up_edge
from lastgood.targets.compose.survey import Survey, SurveyedPostgres, survey
from lastgood.targets.compose.target import ComposeTarget

__all__ = [
    "ComposeTarget",
    "EdgePlan",
    "Survey",
    "SurveyedPostgres",
    "compose_by_hand",
    "edge_file",
    "own_edge_file",
    "set_up_edge",
    "survey",
]
