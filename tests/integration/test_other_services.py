"""The bad release has other services than the one to go back to: typed as a team types it, and killed on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.contract.rigs.gateway import ENGINE, Kills, gateway
from tests.integration.shop import KILLED, SERVICES, Shop

pytestmark = [pytest.mark.needs_docker, pytest.mark.full, pytest.mark.timeout(300)]


def adds_billing(shop: Shop) -> Shop:
    """v1 is good, and v2 has one service more, which is always started again."""
    shop.good()
    shop.stack.services["billing"] = shop.stack.service("billing", restart="always")
    shop.stack.write()
    shop.sections["containers"]["services"] = [*SERVICES, "billing"]
    shop.build("v2", services=(*SERVICES, "billing"))
    shop.deploy("v2")
    return shop


@pytest.mark.parametrize("point", ["after-intent:retire-billing", "after-act:retire-billing"])
def test_a_rollback_that_dies_where_it_stops_what_was_added_goes_on(shop: Shop, point: str) -> None:
    before = adds_billing(shop).seen()
    assert "billing stops and is kept: v1 does not have it" in shop.lastgood("plan")
    shop.roll_back(code=KILLED, die_at=point)
    shop.roll_back()
    shop.check_it_went_back("v1", before)
    assert "billing" not in shop.seen().containers


def test_a_rollback_that_dies_between_stop_and_name_goes_on(shop: Shop, tmp_path: Path) -> None:
    before = adds_billing(shop).seen()
    with gateway(tmp_path / "e.sock", ENGINE) as gate:
        # compose gives each of the two that it recreates its name first
        gate.fault = Kills(at=r"POST /containers/[^/]+/rename\?name=[^&]*retired")
        gate.gone = shop.kill_the_command
        shop.host = gate.url
        shop.roll_back(code=KILLED)
        shop.host = ""
    shop.roll_back()
    shop.check_it_went_back("v1", before)
    (billing,) = shop.stack.client.containers.list(all=True, filters={"name": f"{shop.stack.project}-billing"})
    assert (billing.status, "retired" in str(billing.name)) == ("exited", True)


def test_a_service_that_was_renamed_is_a_way_back_that_doctor_knows(shop: Shop) -> None:
    shop.good()
    shop.stack.services["front"] = shop.stack.services.pop("web") | {"image": f"{shop.stack.project}/front:latest"}
    shop.stack.write()
    shop.sections["containers"]["services"] = ["front", "worker"]
    shop.build("v2", services=("front", "worker"))
    assert "web stops and is kept: v2 does not have it" in shop.deploy("v2")
    before = shop.seen()
    findings = json.loads(shop.lastgood("doctor", "--json", code=1))  # there is no trigger
    (way_back,) = [found for found in findings if found["check"] == "way back"]
    assert (way_back["answer"], way_back["evidence"]) == ("ok", "v1: everything it needs is held")
    shop.roll_back()
    shop.check_it_went_back("v1", before)
    assert "front" not in shop.seen().containers
