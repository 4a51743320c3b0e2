"""A client of the coder agent."""

import httpx


class CoderAgent:
    """`client`: knows the agent's address and the deadline of one task."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def execute(self, task: str) -> str:
        """What the agent made. Raises httpx.HTTPError when it cannot be asked, ValueError when it did not complete."""
        response = await self._client.post("/execute", json={"task": task})
        response.raise_for_status()
        body: dict[str, object] = response.json()
        if body.get("status") != "completed":
            raise ValueError(f"the coder agent answered status {body.get('status')!r}")
        return str(body["result"])
