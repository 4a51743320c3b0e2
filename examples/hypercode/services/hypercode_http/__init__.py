"""What the three HyperCode services have in common on the wire: release, health, JSON problems, a line per failure.

A service hands its routes to `service_app` and the result to `serve`. Nothing here knows what a service is for.
"""

from hypercode_http.app import ObserveRequest, service_app
from hypercode_http.body import integer_field, json_object, optional_field, text_field
from hypercode_http.path import note_path
from hypercode_http.release import RELEASE, TREE
from hypercode_http.serve import serve

__all__ = [
    "RELEASE",
    "TREE",
    "ObserveRequest",
    "integer_field",
    "json_object",
    "note_path",
    "optional_field",
    "serve",
    "service_app",
    "text_field",
]
