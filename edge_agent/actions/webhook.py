"""`webhook`: POST the incident's context as JSON, or a digest of many (see backlog.py). The header `Idempotency-Key` tells a
repeated delivery."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge_agent.actions.outcome import Done, Failed, Outcome, Refusal, Retry
from edge_agent.policy import Policy

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 10.0
_WORTH_A_RETRY = {408, 425, 429}  # and every 5xx; another 4xx would come back the same
_client: httpx.AsyncClient | None = None


async def perform(action: Mapping[str, Any], policy: Policy) -> Outcome:
    config = action.get("config", {})
    url = str(config.get("url", ""))
    if reason := policy.refuses_url(url):
        return Refusal(reason)
    import httpx  # most nodes never call a webhook: 5 MB less for them

    headers = {**config.get("headers", {}), "Idempotency-Key": str(action["id"])}
    try:
        reply = await _shared_client().post(
            url, json=_body(action), headers=headers, timeout=float(config.get("timeout_s") or TIMEOUT_S)
        )
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        return Failed(str(error))
    except httpx.HTTPError as error:
        return Retry(f"{type(error).__name__}: {error}", was_reached=False)
    if reply.is_success:
        return Done(f"HTTP {reply.status_code}")
    is_passing = reply.is_server_error or reply.status_code in _WORTH_A_RETRY
    return (Retry if is_passing else Failed)(f"HTTP {reply.status_code}")


def warm() -> None:
    """Load what the first call would have to wait for, a quarter of a second on a small machine: the horn may not wait.

    In a thread of its own: httpx loads its asyncio backend only within a running loop, and here that loop may not be ours.
    """
    import anyio
    import httpcore

    _shared_client()
    httpcore.AnyIOBackend()
    anyio.run(anyio.sleep, 0)


def _body(action: Mapping[str, Any]) -> dict[str, Any]:
    if "digest" in action:
        return {"id": action["id"], **action["digest"]}
    names = ("id", "incident", "pipeline", "trigger", "transition")
    return {**action.get("context", {}), **{name: action.get(name) for name in names}}


def _shared_client() -> httpx.AsyncClient:
    """One per process: its TLS context costs milliseconds. Redirects are not followed: they would leave the policy behind."""
    global _client
    if _client is None or _client.is_closed:
        import httpx

        _client = httpx.AsyncClient(follow_redirects=False)
    return _client
