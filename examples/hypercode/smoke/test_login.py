"""Login: the right password opens a session that works, a wrong one does not."""

import httpx


def test_login(session: httpx.Client) -> None:
    listed = session.get("/missions", params={"limit": 1})
    assert listed.status_code == 200, listed.text
    assert isinstance(listed.json()["missions"], list)


def test_login_with_a_wrong_password_is_refused(core: httpx.Client) -> None:
    answer = core.post("/login", json={"user": "ada", "password": "babbage"})
    assert answer.status_code == 401, answer.text
    assert "token" not in answer.json()


def test_a_forged_token_is_refused(core: httpx.Client) -> None:
    answer = core.get("/missions", headers={"Authorization": "Bearer eyJpZCI6MX0.AAAA"})
    assert answer.status_code == 401, answer.text
