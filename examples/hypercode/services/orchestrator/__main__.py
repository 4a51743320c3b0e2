"""`python -m orchestrator`: serve on PORT, 8081 unless told otherwise."""

import os

from hypercode_http import serve
from orchestrator.app import orchestrator_app

serve(
    orchestrator_app(
        coder_agent_url=os.environ.get("CODER_AGENT_URL", "http://127.0.0.1:8002"),
        execute_deadline_s=float(os.environ.get("EXECUTE_DEADLINE_S", "2.5")),
    ),
    default_port=8081,
)
