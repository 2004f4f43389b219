"""A verifier's own signed statement of what it found, so that a re-run can be published."""

from __future__ import annotations

from pathlib import Path

from detect.evidence.bundle import MANIFEST
from detect.evidence.envelope import Statement, sign_statement
from detect.evidence.verify import Verification
from watermark import __version__
from watermark.commitment_log import now
from watermark.errors import UsageError
from watermark.signed_note import NoteSigner
from watermark.whole_file import write_whole

__all__ = ["write_verification"]


def write_verification(path: Path, verification: Verification, *, key: Path | None) -> None:
    """Write a signed statement over the bundle's manifest: each check and what became of it.

    Raises:
        UsageError: no key was given, or the manifest could not be read.
    """
    if key is None:
        raise UsageError("--statement wants --key, the verifier's own private key (taggant ledger create-key)")
    if verification.manifest is None:
        raise UsageError("no statement is written: the claim's signature or the manifest could not be read")
    statement = Statement(
        kind="verification",
        subject={MANIFEST: verification.manifest},
        predicate={
            "checks": {result.check.id: result.status.value for result in verification.results},
            "failed": len(verification.failed),
            "unable": verification.unable,
            "software": f"taggant {__version__}",
            "time": now(),
        },
    )
    write_whole(path, sign_statement(statement, [NoteSigner.load(key)]).to_bytes(), what="the statement")
