"""`tidewire rollout`, `history`, `params`, `--wait` at the command line, against a real server."""

from __future__ import annotations

import asyncio

from server_process import PRESS, ServerProcess
from test_walks import Plant


def test_exit_statuses_and_words(server: ServerProcess) -> None:
    for number in (1, 2, 3):
        server.apply(PRESS.replace("Press temperatures", f"Press temperatures, {number}"))
    plant = Plant(server)

    def run(*words: str, status: int = 0) -> str:
        done = server.cli(*words)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    async def story() -> None:
        await plant.join("pi1", "pi2", "pi3", labels={"site": "lyon"})
        late = run("deploy", "press@1", "-s", "all", "--wait", "--timeout", "1s", status=3)
        assert "press is not out after 1s" in late and "fix: tidewire rollout status press" in late
        await plant.hear("pi1", "pi2", "pi3")
        assert "done; 3 healthy" in run("rollout", "status", "press", "--wait", "--timeout", "20s")
        assert "nothing to go back to" in run("rollout", "undo", "press", status=1)
        assert "no canaries under way" in run("rollout", "pause", "press", status=1)

        run("deploy", "press@2", "-s", "all", "--canary", "1", "--soak", "1s", "--reason", "try")
        (canary,) = plant.admitted()
        assert "pause: press on all" in run("rollout", "pause", "press", "--reason", "lunch")
        assert "paused" in run("rollout", "status")
        run("rollout", "resume", "press")
        await plant.hear(canary, verdict="failed")
        held = run("rollout", "status", "press", "--wait", "--timeout", "20s", status=1)
        assert f"{canary} failed it: 31% of the rows rejected" in held and "2 waiting" in held
        assert "no node has banned press@3" in run("rollout", "unban", "press@3", status=1)
        run("rollout", "unban", "press@x", status=2)
        assert canary in run("rollout", "retry", "press", "--node", canary, "--dry-run")
        run("rollout", "status", "press", status=1)
        assert f"retry: press on {canary}" in run("rollout", "retry", "press", "--node", canary)
        await plant.hear(canary)
        for _ in range(40):
            await plant.hear("pi1", "pi2", "pi3")
            if server.json("rollout", "status", "press")["rollouts"][0]["state"] == "done":
                break
            await asyncio.sleep(0.3)
        assert "done; 3 healthy" in run("rollout", "status", "press")
        told = run("history", "press", "--node", canary)
        assert "all by ana try" in told and f"version 2 failed on {canary}: 31%" in told, "and is not banned any more"
        undone = server.json("rollout", "undo", "press")["undone"][0]["groups"]
        assert [len(undone[group]) for group in ("back", "may_run", "never", "failed")] == [3, 0, 0, 0]
        assert "there is no pipeline 'pres'" in run("rollout", "status", "pres", status=1)
        assert "not a step" in run("deploy", "press", "-s", "all", "--canary", "x", status=2)
        assert "percent" in run("deploy", "press", "-s", "all", "--gate", "rejected=1", status=2)
        assert "until" in run("set", "press", "limit_c=70", "-s", "all", "--for", "8h") + run("params", "press")
        await plant.close()

    asyncio.run(story())
