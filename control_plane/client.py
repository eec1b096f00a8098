"""The command line's side of the HTTP API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from control_plane.config import ApiAddress
from pipelines.contract.errors import OutOfReach, TidewireError

_CONNECT_S, _ANSWER_S = 3.0, 660.0


class ServerError(TidewireError):
    """An error of the server, printed as it came."""

    def __init__(self, lines: list[str], exit_status: int) -> None:
        super().__init__(lines[0] if lines else "the control plane gave no reason")
        self._lines, self.exit_status = lines, exit_status

    def lines(self) -> list[str]:
        return self._lines or [str(self)]


class Client:
    """Calls the server that `ApiAddress.find` finds. Raises `OutOfReach` (exit status 3) when nobody answers."""

    def __init__(self, data_dir: Path) -> None:
        address = ApiAddress.find(data_dir)
        if address is None:
            hint = "start it with `tidewire up`, or set TIDEWIRE_URL and TIDEWIRE_TOKEN"
            raise OutOfReach("no control plane runs on this data directory", place=str(data_dir), hint=hint)
        self._address = address

    def get(self, path: str, **query: str | None) -> Any:
        return self._call("GET", path, params={key: value for key, value in query.items() if value is not None})

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._call("POST", path, json=body)

    def send(self, path: str, data: bytes, **query: str) -> Any:
        """A file as it is."""
        return self._call("POST", path, content=data, params=query)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self._address.token}"}
        timeout = httpx.Timeout(_ANSWER_S, connect=_CONNECT_S)
        try:
            response = httpx.request(
                method, self._address.url + path, headers=headers, timeout=timeout, trust_env=False, **options
            )
            body = response.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            hint = "check that `tidewire up` runs, or where TIDEWIRE_URL points"
            raise OutOfReach(
                f"the control plane does not answer ({type(error).__name__})", place=self._address.url, hint=hint
            ) from None
        if response.is_success:
            return body
        raise ServerError([str(line) for line in body.get("error", [])], int(body.get("exit_status", 1)))
