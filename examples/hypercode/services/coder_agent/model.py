"""The models that write code: an offline one that needs nothing, and any server that speaks OpenAI's API."""

import re
from collections.abc import Mapping
from typing import Final, Protocol, cast

import httpx

_LONGEST_NAME: Final = 40


class ModelFailed(Exception):
    """The model gave no usable answer."""


class Model(Protocol):
    """Writes Python for a task."""

    async def write(self, task: str) -> str:
        """Source text. Raises ModelFailed."""
        ...


class OfflineModel:
    """Deterministic: the same task gives the same small function. It needs no network and no key."""

    async def write(self, task: str) -> str:
        """One function, named after the task, that says what it was made for."""
        words = re.findall(r"[a-z0-9]+", task.lower())
        name = "_".join(words)[:_LONGEST_NAME].strip("_") or "task"
        return f"def do_{name}() -> str:\n    return {task!r}\n"


class OpenAIModel:
    """`POST {base_url}/chat/completions` (OpenAI API reference, "Create chat completion", read 2026-01)."""

    def __init__(self, *, base_url: str, api_key: str, name: str, deadline_s: float) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=deadline_s)
        self._name = name

    async def write(self, task: str) -> str:
        """The code of the first choice, without the fence around it. Raises ModelFailed."""
        messages = [
            {"role": "system", "content": "Answer with Python source code only."},
            {"role": "user", "content": task},
        ]
        try:
            response = await self._client.post(
                "chat/completions", json={"model": self._name, "messages": messages, "temperature": 0}
            )
            response.raise_for_status()
            body = cast("dict[str, list[dict[str, dict[str, str]]]]", response.json())
            content = body["choices"][0]["message"]["content"]
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise ModelFailed(f"{self._name} gave no answer") from error
        fenced = re.search(r"```(?:python)?\n(.*?)```", content, re.DOTALL)
        return content if fenced is None else fenced.group(1)


def model_from_environment(environment: Mapping[str, str]) -> Model:
    """The offline model unless OPENAI_BASE_URL is set; MODEL_DEADLINE_S bounds one answer of the other, seconds."""
    base_url = environment.get("OPENAI_BASE_URL", "")
    if not base_url:
        return OfflineModel()
    return OpenAIModel(
        base_url=base_url,
        api_key=environment.get("OPENAI_API_KEY", ""),
        name=environment.get("OPENAI_MODEL", "gpt-4o-mini"),
        deadline_s=float(environment.get("MODEL_DEADLINE_S", "30")),
    )
