"""Why a node does not run what it should: the closed list of cause codes. A node reports those it knows, `why` finds the rest.

Each has a test. The words of a cause are written where it is found; these are the codes that scripts may rely on.
"""

from __future__ import annotations

# It is as it should be.
AS_WANTED = "as_wanted"
SOAKING = "soaking"  # runs as wanted, its gate is not passed yet

# The centre does not want it there.
NOT_DEPLOYED = "not_deployed"
NOT_SELECTED = "not_selected"
OTHER_TARGET = "other_target"  # an earlier target of the deployment won
WAITING = "waiting"  # for its step of the rollout
ROLLOUT_PAUSED = "rollout_paused"
ROLLOUT_HELD = "rollout_held"
ROLLOUT_UNDONE = "rollout_undone"

# It has not got there.
OUT_OF_CONTACT = "out_of_contact"
NODE_AHEAD = "node_ahead"  # the control plane was restored from a backup
DOCUMENT_REFUSED = "document_refused"
NOT_RECEIVED = "not_received"
NOT_APPLIED = "not_applied"
FETCHING = "fetching"
REPLACED = "replaced"  # another card has the node's name

# The node cannot run it.
LANGUAGE = "language"  # the agent is too old for it
SIGNATURE = "signature"
POLICY = "policy"  # the node's policy.yaml forbids something it needs
SECRET_MISSING = "secret_missing"  # noqa: S105 - a code
LABEL_MISSING = "label_missing"
PARAM_MISSING = "param_missing"
PARAM_INVALID = "param_invalid"
ARTIFACT_MISSING = "artifact_missing"
DISK = "disk"  # it asks for more than there is
STORE_FULL = "store_full"
STARTING = "starting"
FAILED = "failed"

# The node will not run it.
BANNED = "banned"  # it failed its gate here
GATE_HELD = "gate_held"  # a source or sink fails: the version is not judged meanwhile
PINNED = "pinned"
PAUSED = "paused"

# It runs, but.
TROUBLED = "troubled"  # something it needs, such as a source, fails
PARAMS_PENDING = "params_pending"
STILL_RUNNING = "still_running"  # though nothing wants it

CODES = frozenset(value for name, value in globals().items() if name.isupper() and isinstance(value, str))
# The wanted version runs with the wanted parameters; what it waits for is no difference (a gate without rows among it).
RUNS_AS_WANTED = frozenset({AS_WANTED, SOAKING, TROUBLED, GATE_HELD})
