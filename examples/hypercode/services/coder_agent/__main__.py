"""`python -m coder_agent`: serve on PORT, 8002 unless told otherwise."""

import os

from coder_agent.app import coder_agent_app
from coder_agent.model import model_from_environment
from hypercode_http import serve

serve(coder_agent_app(model_from_environment(os.environ)), default_port=8002)
