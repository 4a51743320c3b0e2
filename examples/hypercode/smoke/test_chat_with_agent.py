"""Chat with Agent: the answer comes from the coder agent by way of the orchestrator, and belongs to the mission."""

import httpx


def test_chat_with_agent(session: httpx.Client) -> None:
    created = session.post("/missions", json={"title": "Smoke test: chat", "credits": 1, "priority": "low"})
    assert created.status_code == 201, created.text
    mission_id = created.json()["id"]
    try:
        answer = session.post("/chat", json={"message": "count the stars", "mission_id": mission_id})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["steps"] == ["Clarify: count the stars", "Write: count the stars", "Check: count the stars"]
        assert "def " in body["reply"], "the reply holds no code from the coder agent"
    finally:
        completed = session.post(f"/missions/{mission_id}/complete")
    assert completed.status_code == 200, completed.text
