"""The order: loops that ask the core what to do next and use the ports to do it. No runbook decides by itself."""
