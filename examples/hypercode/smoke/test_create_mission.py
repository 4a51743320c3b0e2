"""Create Mission: it is stored as it was sent, can be read back, and can be completed."""

import httpx


def test_create_mission(session: httpx.Client) -> None:
    created = session.post("/missions", json={"title": "Smoke test", "credits": 125, "priority": "low"})
    assert created.status_code == 201, created.text
    mission = created.json()
    assert (mission["title"], mission["credits"], mission["priority"]) == ("Smoke test", 125, "low")
    assert (mission["status"], mission["completed_at"]) == ("OPEN", None)

    read = session.get(f"/missions/{mission['id']}")
    assert read.status_code == 200, read.text
    assert read.json() == mission

    completed = session.post(f"/missions/{mission['id']}/complete")
    assert completed.status_code == 200, completed.text
    assert completed.json()["status"] == "COMPLETED"
    assert completed.json()["completed_at"] is not None
