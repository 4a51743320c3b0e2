"""`python -m hypercode_core`: serve the HTTP API on PORT, 8000 unless told otherwise."""

import os

from hypercode_core.app import core_app
from hypercode_core.settings import Settings
from hypercode_http import serve

serve(core_app(Settings.from_environment(os.environ)), default_port=8000)
