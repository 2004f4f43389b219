"""Steps of a scope's life that are said in the commitment log as well as in the key file.

The log is written first where the key file's change would else go unsaid, and the activation binds the two: the
randomness in the key file is the one in the log.
"""

from __future__ import annotations

from pathlib import Path

from watermark.commitment_log import (
    ACTIVATION,
    ActivationSource,
    CommitmentLog,
    Leaf,
    activation_leaf,
    commitment_leaf,
    state_leaf,
)
from watermark.errors import UsageError
from watermark.keyring import Keyring
from watermark.keys import NO_ACTIVATION
from watermark.life_cycle import activate, compromise, parse_activation, retire, update_key_file
from watermark.signed_note import NoteSigner

__all__ = ["activate_scope", "commit", "end_scope"]


def commit(keyring: Keyring, scope: str, *, log: Path, signer: NoteSigner) -> Leaf:
    """Append a scope's commitment to the log.

    Raises:
        UsageError: there is no such scope, or the log has its commitment already.
    """
    keys = keyring.scope(scope)
    for leaf in CommitmentLog(log).entries():
        if leaf.value.get("commitments") == keys.commitments():
            raise UsageError(f"scope {scope}: is committed to already, in entry {leaf.index} of this log")
    return CommitmentLog(log).append(commitment_leaf(keys), signer)


def activate_scope(
    keyring: Path,
    scope: str,
    *,
    value: str | None,
    log: Path | None,
    key: Path | None,
    beacon: str | None,
    round: int | None,
    auditor: str | None,
) -> bool:
    """Activate a pending scope, in the log too if one is given.

    Args:
        keyring: the key file, which is changed.
        scope: its name.
        value: the randomness; None for none.
        log: the commitment log; the scope must be committed to in it.
        key: the publisher's, with *log*.
        beacon: the name of the beacon that *value* is of, with *log*.
        round: the beacon's.
        auditor: the name of the auditor whose nonce it is, with *log*.

    Returns:
        Whether randomness went in.

    Raises:
        UsageError: options that do not go together, or the log lacks the commitment.
    """
    if log is None:
        if beacon or auditor or round is not None or key is not None:
            raise UsageError("--beacon, --round, --auditor and --key say something in a log: name it with --log")
        drawn = NO_ACTIVATION if value is None else parse_activation(value)
        update_key_file(keyring, lambda old: activate(old, scope, activation=drawn))
        return value is not None
    signer = _signer(key)
    source = None
    if value is not None:
        if (beacon is None) == (auditor is None):
            raise UsageError("say whose randomness it is: --beacon NAME --round N, or --auditor NAME")
        kind, name = ("beacon", beacon) if beacon is not None else ("nonce", auditor)
        source = ActivationSource(kind=kind, name=name or "", value=value, round=round)
    ledger = CommitmentLog(log)
    keys = Keyring.load(keyring).scope(scope)
    committed = ledger.commitment(scope, keys.fingerprint)
    if committed.value["commitments"] != keys.commitments():
        raise UsageError(f"scope {scope}: the log commits to other seeds than this key file's")
    leaf = activation_leaf(committed, source)
    before = [each for each in ledger.entries() if each.value.get("commitment") == committed.hash]
    said = [each for each in before if each.type == ACTIVATION]
    if said and said[0].value["activation"] != leaf["activation"]:
        raise UsageError(f"scope {scope}: the log has its activation already, with other randomness")
    if not said:
        ledger.append(leaf, signer)
    drawn = NO_ACTIVATION if source is None else source.activation
    update_key_file(keyring, lambda old: activate(old, scope, activation=drawn))
    return source is not None


def end_scope(keyring: Path, scope: str, state: str, *, log: Path | None, key: Path | None) -> None:
    """Retire a scope, or mark it as compromised; in the log too if one is given.

    Raises:
        UsageError: the scope is not in a state that this may follow, or options do not go together.
    """
    if (log is None) != (key is None):
        raise UsageError("--log and --key go together")
    change = retire if state == "retired" else compromise
    changed = update_key_file(keyring, lambda old: change(old, scope))
    if log is not None:
        CommitmentLog(log).append(state_leaf(changed.scope(scope), state), _signer(key))


def _signer(key: Path | None) -> NoteSigner:
    if key is None:
        raise UsageError("--log wants --key, the publisher's private key (taggant ledger create-key)")
    return NoteSigner.load(key)
