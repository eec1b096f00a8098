"""Join tokens: everything a new node needs to find the control plane, to know it when it sees it, and to be let in once."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass

from pipelines.contract.errors import Refused
from pipelines.contract.frames import canonical_json
from pipelines.contract.keys import Key, is_signed_by

PREFIX = "tw1."


@dataclass(frozen=True)
class JoinToken:
    """A bearer secret. `jwt` and `seed` open a NATS connection that may only ask to join, until the JWT expires."""

    id: str
    url: str
    control: str  # public nkey of the control plane: its replies are checked against it
    jwt: str
    seed: str
    ca: str = ""  # PEM of the certificate to trust; "" on loopback, where there is no TLS

    def encode(self) -> str:
        raw = json.dumps(asdict(self), separators=(",", ":")).encode()
        return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> JoinToken:
        body = text.strip().removeprefix(PREFIX)
        try:
            if body == text.strip():
                raise ValueError("no prefix")
            fields = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            token = cls(**fields)
            if not all(isinstance(value, str) for value in asdict(token).values()):
                raise ValueError("not text")
        except (ValueError, TypeError, RecursionError):
            raise Refused(
                "this is not a join token", op="join", hint="paste the whole line that `tidewire join-token create` printed"
            ) from None
        return token

    def __repr__(self) -> str:
        return f"JoinToken({self.id}, {self.url})"


def prove(token_key: Key, nonce: str, public: str) -> bytes:
    """What shows that whoever asks to let `public` in holds the token: a signature by the token's own key (64 bytes)."""
    return token_key.sign(_proof_of(nonce, public))


def is_proven(token_public: str, nonce: str, public: str, proof: bytes) -> bool:
    return is_signed_by(token_public, _proof_of(nonce, public), proof)


def _proof_of(nonce: str, public: str) -> bytes:
    return b"tidewire join 1" + canonical_json([nonce, public])
