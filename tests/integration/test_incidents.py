"""What happened to others, on a real engine: named after what they wrote, and what happens here instead.

docs/incidents.md lists them all, those that are shown elsewhere included.
"""

from __future__ import annotations

import json

import pytest

from lastgood.core.report import TerminalState
from tests.contract.rigs.compose import ComposeWorld
from tests.integration.shop import KILLED, NEEDS_HUMAN, REFUSED, SERVES, Shop

pytestmark = [pytest.mark.needs_docker, pytest.mark.timeout(300)]


@pytest.mark.full
def test_force_recreate_put_the_database_on_an_empty_bind_mount(shop: Shop) -> None:
    """The bad release's compose file names another folder for the database, which nobody noticed as it kept running."""
    stack = shop.stack
    (stack.root / "rows").mkdir()
    (stack.root / "rows" / "kept").write_text("all that there is")
    stack.services["db"]["volumes"] = ["./rows:/var/lib/postgresql/data"]
    stack.services["web"]["depends_on"] = ["db"]
    stack.write()
    stack.compose("up", "--detach", "--wait", "db")
    shop.good("v1")
    (stack.root / "empty").mkdir()
    stack.services["db"]["volumes"] = ["./empty:/var/lib/postgresql/data"]
    stack.write()
    shop.bad("v2")
    before = shop.seen()
    shop.roll_back()
    shop.check_it_went_back("v1", before)
    assert rows_of(stack) == str(stack.root / "rows")
    # and that it was there to happen: this is what they had typed
    stack.compose("up", "--detach", "--force-recreate", "web")
    assert rows_of(stack) == str(stack.root / "empty")


def rows_of(stack: ComposeWorld) -> str:
    """The folder of the host in which the database keeps its rows."""
    mounts = stack.container("db").attrs["Mounts"]
    return next(str(m["Source"]) for m in mounts if m["Destination"] == "/var/lib/postgresql/data")


@pytest.fixture
def tagged(shop: Shop) -> Shop:
    """Its images have a tag for each release, which a variable names: in .env, or in the shell."""
    for service in ("web", "worker"):
        shop.stack.services[service]["image"] = f"{shop.stack.project}/{service}:${{IMAGE_TAG}}"
    return shop


def deploy_tag(shop: Shop, release: str, *words: str, code: int = 0, exported: str = "") -> str:
    """Build and deploy a release whose tag .env names. exported: the one that the shell names, empty for none."""
    shop.build(release)
    for service in ("web", "worker"):
        shop.stack.client.images.get(f"{shop.stack.project}/{service}:latest").tag(
            f"{shop.stack.project}/{service}", release
        )
    shop.stack.write(env=f"IMAGE_TAG={release}\n")
    return shop.deploy(release, *words, code=code, env={"IMAGE_TAG": exported} if exported else None)


@pytest.mark.full
def test_a_variable_of_the_shell_beat_the_env_file(tagged: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy_tag(tagged, "v1", "--first")
    tagged.lastgood("record", "--good", "-m", "known good")
    deploy_tag(tagged, "v2")
    before = tagged.seen()
    monkeypatch.setenv("IMAGE_TAG", "v2")
    tagged.stack.write(env="IMAGE_TAG=v1\n")
    # what they had typed, and what it did: nothing, and it said that all is well
    tagged.stack.compose("up", "--detach", "--no-deps", "web", "worker")
    assert tagged.seen().release == "v2"
    tagged.roll_back()
    tagged.check_it_went_back("v1", before)


@pytest.mark.full
def test_a_variable_of_the_shell_made_a_deploy_a_silent_no_op(tagged: Shop) -> None:
    deploy_tag(tagged, "v1", "--first")
    tagged.lastgood("record", "--good", "-m", "known good")
    before = tagged.seen()
    said = deploy_tag(tagged, "v2", code=REFUSED, exported="v1")
    assert "IMAGE_TAG of the environment beats the one in .env" in said
    assert " hint: unset IMAGE_TAG" in said
    tagged.check_nothing_was_touched(before)
    # where it changes something it may well be meant, as in a pipeline whose .env only has the default
    deploy_tag(tagged, "v3")
    assert tagged.seen().release == "v3"


NEWER_SCHEMA = """
schema=$(wget -q -O - http://db:8080/schema)
[ "$schema" -le {knows} ] || {{ echo "schema $schema is newer than this code, which knows {knows}" >&2; exit 3; }}
[ "$schema" = {knows} ] || wget -q -O - http://db:8080/cgi-bin/migrate >&2
exec httpd -f -p 8080 -h /www
"""


@pytest.mark.full
def test_older_code_refused_a_newer_schema(shop: Shop) -> None:
    """The services migrate when they start, and lastgood was not told of a database: only the old code itself knows."""
    stack = shop.stack
    migrate = "#!/bin/sh\\necho 2 >/www/schema\\necho\\necho done\\n"
    stack.image(
        "db",
        "0",
        script=f"echo 1 >/www/schema; mkdir -p /www/cgi-bin; printf '{migrate}' >/www/cgi-bin/migrate; "
        f"chmod 755 /www/cgi-bin/migrate; {SERVES}",
    )
    stack.services["db"]["healthcheck"]["test"][-1] = "http://127.0.0.1:8080/schema"
    stack.write()
    stack.compose("up", "--detach", "--wait", "db")
    shop.build("v1", script=NEWER_SCHEMA.format(knows=1))
    shop.deploy("v1", "--first")
    shop.lastgood("record", "--good", "-m", "known good")
    shop.build("v2", script=NEWER_SCHEMA.format(knows=2))
    shop.deploy("v2")
    before = shop.seen()
    assert before.release == "v2"
    said = shop.roll_back(code=REFUSED)
    assert "web of v1 exited with 3 at the gate; it said: schema 2 is newer than this code, which knows 1" in said
    shop.check_nothing_was_touched(before)
    assert any("Rollback refused" in text and "schema 2 is newer" in text for text in shop.told)


@pytest.mark.full
def test_compose_was_reverted_and_env_and_secrets_were_not(shop: Shop) -> None:
    stack = shop.stack
    stack.services["web"] |= {
        "env_file": "web.env",
        "environment": {"INLINE": "${INLINE}"},
        "secrets": ["token"],
        "configs": ["limits"],
    }
    stack.secrets["token"] = {"file": "./token"}
    stack.configs["limits"] = {"file": "./limits"}
    told = "echo $FROM_FILE $INLINE $(cat /run/secrets/token) $(cat /limits) >/www/told"

    def configured(release: str) -> None:
        (stack.root / "web.env").write_text(f"FROM_FILE=file-{release}\n")
        (stack.root / "token").write_text(f"token-{release}")
        (stack.root / "limits").write_text(f"limits-{release}")
        stack.write(env=f"INLINE=inline-{release}\n")
        shop.build(release, script=f"{told}; {SERVES}")

    configured("v1")
    shop.deploy("v1", "--first")
    shop.lastgood("record", "--good", "-m", "known good")
    asked = stack.page("/told")
    assert asked.split() == ["file-v1", "inline-v1", "token-v1", "limits-v1"]
    configured("v2")
    shop.deploy("v2")
    assert stack.page("/told").split() == ["file-v2", "inline-v2", "token-v2", "limits-v2"]
    before = shop.seen()
    shop.roll_back()
    shop.check_it_went_back("v1", before)
    assert stack.page("/told") == asked


@pytest.mark.full
def test_the_disk_was_rolled_back_and_the_old_process_still_served(shop: Shop) -> None:
    """The files and the tags are those of v1 again, and nobody restarted anything."""
    stack = shop.stack
    stack.services["web"]["environment"] = {"GREETING": "v1"}
    stack.write()
    shop.good("v1")
    stack.services["web"]["environment"] = {"GREETING": "v2"}
    stack.write()
    shop.bad("v2")
    before = shop.seen()
    stack.services["web"]["environment"] = {"GREETING": "v1"}
    stack.write()
    for service in shop.release("v1").services:
        stack.client.images.get(service.artifact).tag(f"{stack.project}/{service.name}", "latest")
    # what is recorded is what runs, whatever the disk says
    shop.lastgood("record", "--release", "seen")
    assert {s.name: s.artifact for s in shop.release("seen").services} == {
        s: before.containers[s][1] for s in ("web", "worker")
    }
    shop.roll_back()
    shop.check_it_went_back("v1", before)
    assert "GREETING=v1" in stack.container("web").attrs["Config"]["Env"]


@pytest.mark.full
def test_previous_selected_the_bad_release_again(shop: Shop) -> None:
    shop.good("v1")
    shop.good("v2")
    shop.bad("v3")
    shop.roll_back()
    assert shop.seen().release == "v2"
    before = shop.seen()
    said = shop.roll_back(code=REFUSED)
    assert "v3 was rolled back already, and v2 serves" in said
    assert "lastgood rollback RELEASE" in said
    assert shop.seen() == before
    assert "barred" in shop.roll_back("v3", code=REFUSED)
    shop.lastgood("unfreeze", "-m", "v4 mends it")
    shop.bad("v4")
    shop.roll_back()
    assert shop.seen().release == "v2"
    shop.roll_back("v1")
    shop.check_it_went_back("v1", before)


@pytest.mark.full
def test_the_image_to_go_back_to_was_pruned(shop: Shop) -> None:
    """A pull-less stack: nobody else has the image. It is noticed before it is needed, and refused when it is."""
    shop.good("v1")
    shop.bad("v2")
    before = shop.seen()
    (worker,) = [s for s in shop.release("v1").services if s.name == "worker"]
    shop.stack.client.images.remove(worker.artifact, force=True)
    findings = {f["check"]: f for f in json.loads(shop.lastgood("doctor", "--json", code=1))}
    assert findings["way back"]["answer"] == "failed"
    assert "v1: the image of worker" in findings["way back"]["evidence"]
    said = shop.roll_back(code=REFUSED)
    assert "the image of worker" in said
    assert "is not on this host, and no registry is known to have it" in said
    shop.check_nothing_was_touched(before)


@pytest.mark.full
def test_pruning_dangling_images_took_the_one_to_go_back_to(shop: Shop) -> None:
    """`docker image prune`, of this project's images alone: the tags moved on, and without the held tag v1 would
    dangle."""
    shop.good("v1")
    shop.bad("v2")
    before = shop.seen()
    shop.stack.client.images.prune(filters={"dangling": True, "label": f"lastgood.test={shop.stack.project}"})
    shop.roll_back()
    shop.check_it_went_back("v1", before)


@pytest.mark.full
def test_the_wait_was_shorter_than_the_start_period(shop: Shop) -> None:
    """The image, not the compose file, says how long it may take to start."""
    stack = shop.stack
    del stack.services["web"]["healthcheck"]
    stack.write()
    stack.changes["web"] = [
        "HEALTHCHECK --interval=500ms --start-period=90s CMD wget -q -O /dev/null http://127.0.0.1:8080/"
    ]
    shop.build("v1")
    said = shop.deploy("v1", "--first", code=REFUSED)
    assert "web may take 90 s to start (start_period), containers.boot is 20 s: raise it" in said
    shop.sections["containers"]["boot"] = "2m"
    shop.deploy("v1", "--first")
    assert shop.seen().release == "v1"


@pytest.mark.full
def test_a_failing_notifier_failed_the_deploy(shop: Shop) -> None:
    shop.good("v1")
    shop.sections["notify"]["slack"]["url"] = "http://127.0.0.1:1/api/"
    shop.bad("v2")
    before = shop.seen()
    said = shop.roll_back()
    shop.check_it_went_back("v1", before, times=0)
    assert "#dev-ops could not be told" in said


@pytest.mark.full
def test_restore_complete_was_said_after_the_restore_had_failed(shop: Shop) -> None:
    """The old release passes the gate, where its folder is empty, and dies on what the bad one left in it."""
    stack = shop.stack
    stack.services["web"]["volumes"] = ["uploads:/uploads"]
    stack.extra_volumes["uploads"] = {}
    stack.write()
    dies = "[ ! -e /uploads/format-2 ] || { echo 'cannot read format 2' >&2; exit 4; }"
    shop.build("v1", script=f"{dies}; {SERVES}")
    shop.deploy("v1", "--first")
    shop.lastgood("record", "--good", "-m", "known good")
    shop.build("v2", script=f"echo 2 >/uploads/format-2; {SERVES}")
    shop.deploy("v2")
    before = shop.seen()
    said = shop.roll_back(code=NEEDS_HUMAN)
    assert "web of v1 exited with 4; it said: cannot read format 2" in said
    assert [text for text in shop.told if "completed" in text] == []
    (stopped,) = [text for text in shop.told if text.startswith("🚨")]
    assert "stopped at serve-web" in stopped
    assert "needs ada" in stopped
    assert shop.report.terminal is TerminalState.NEEDS_HUMAN
    assert shop.serving == "v2", "half a rollback is none"
    status = shop.lastgood("status")
    assert "next: lastgood rollback v1" in status
    assert stack.container("db").id == before.containers["db"][0]
    # a person mends what it named, and types what it said
    stack.client.containers.run(
        f"{stack.project}/db:latest", ["rm", "/uploads/format-2"], remove=True,
        volumes={f"{stack.project}_uploads": {"bind": "/uploads", "mode": "rw"}},
    )  # fmt: skip
    shop.roll_back("v1")
    shop.check_it_went_back("v1", before)


@pytest.mark.full
def test_a_killed_deploy_left_its_lock_behind(shop: Shop) -> None:
    """Four weeks, it was. Here the right dies with the process, and what it left half done is put back."""
    shop.good("v1")
    before = shop.seen()
    shop.build("v2")
    words = ("deploy", "--release", "v2", "--no-watch", "--yes")
    shop.lastgood(*words, code=KILLED, die_at="after-act:serve-web")
    assert "INTERRUPTED" in shop.lastgood("status")
    assert shop.seen().release == "v2"
    assert "did not finish" in shop.deploy("v3", code=REFUSED)
    shop.roll_back()
    shop.check_it_went_back("v1", before)
    shop.lastgood("unfreeze", "-m", "the machine was restarted")
    shop.bad("v4")
    assert shop.seen().release == "v4"


@pytest.mark.full
def test_the_signal_was_red_before_the_deploy(shop: Shop) -> None:
    """The chat has been down since yesterday: that is no fault of the release."""
    shop.sections["watch"] = {
        "window": "25s", "interval": "1s", "warm_up": "0s", "baseline": "8s",
        "triggers": {
            "chat": {"kind": "feature", "probe": {"get": f"http://127.0.0.1:{shop.stack.port}/chat"}},
            "front-page": {"kind": "feature", "probe": {"get": f"http://127.0.0.1:{shop.stack.port}/"}},
        },
    }  # fmt: skip
    shop.good("v1")
    shop.build("v2")
    said = shop.lastgood("deploy", "--release", "v2", "--yes")
    assert "HEALTHY_KEPT" in said
    assert shop.seen().release == "v2"
    assert [text for text in shop.told if "Rollback" in text] == []
    assert "chat" in said
    assert "before the deploy" in said
    # and a trigger that was green is armed all the same
    shop.build("v3", script="mv /www/index.html /www/gone; echo ok >/www/alive; exec httpd -f -p 8080 -h /www")
    shop.stack.services["web"]["healthcheck"]["test"][-1] = "http://127.0.0.1:8080/alive"
    shop.stack.services["worker"]["healthcheck"]["test"][-1] = "http://127.0.0.1:8080/alive"
    shop.stack.write()
    said = shop.lastgood("deploy", "--release", "v3", "--yes", code=1)
    assert "ROLLED_BACK_VERIFIED" in said
    assert shop.seen().release == "v2"


@pytest.mark.full
def test_a_later_deploy_shipped_the_bad_build_again(shop: Shop) -> None:
    stack = shop.stack
    git = ("git", "-c", "user.name=ada", "-c", "user.email=ada@example.org")
    (stack.root / ".gitignore").write_text(".lastgood/\nlastgood.yaml\n")
    stack.run("git", "init", "--quiet")
    stack.run(*git, "add", "--all")
    stack.run(*git, "commit", "--quiet", "--message", "v1")
    shop.good("v1")
    stack.services["web"]["environment"] = {"CACHE": "on"}
    stack.write()
    stack.run(*git, "commit", "--quiet", "--all", "--message", "v2")
    shop.bad("v2")
    shop.roll_back()
    before = shop.seen()
    assert "deploys are frozen" in shop.deploy("v3", code=REFUSED)
    shop.lastgood("unfreeze", "-m", "we deploy something else")
    # the tags still name the bad build
    assert "v3 is v2 by another name, which was rolled back" in shop.deploy("v3", code=REFUSED)
    # and built once more from the same commit it is another image, and the same bad release
    shop.build("v2, built again")
    assert "v4 is v2 by another name, which was rolled back" in shop.deploy("v4", code=REFUSED)
    assert "v2 is barred" in shop.deploy("v2", code=REFUSED)
    assert shop.seen() == before
