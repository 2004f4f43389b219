from __future__ import annotations

from pathlib import Path

import pytest

from watermark.errors import UsageError
from watermark.serving import FieldTrust, IngressConfig, LedgerConfig, Policy, ServingConfig

WHOLE = """
keyring = "/k/serving.json"
scope = "2026-q4"
policy = "optional"
shadow = true
min_entropy = 1
fields = "plain"
require_account = true
tokenizer = "smollm2"
metrics = "/m"
refresh = 2.5

[ingress]
accounts = "/k/accounts"
key = "/k/ingress"
logprobs = "pass"
self_test = false

[ledger]
database = "postgresql://u:secret@db/ledger"
origin = "a/b"
retention = "digest"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "taggant.toml"
    path.write_text(text)
    return path


def test_every_setting_is_read(tmp_path: Path) -> None:
    config = ServingConfig.load(written(tmp_path, WHOLE))
    assert config == ServingConfig(
        keyring=Path("/k/serving.json"),
        scope="2026-q4",
        policy=Policy.OPTIONAL,
        shadow=True,
        min_entropy=1.0,
        fields=FieldTrust.PLAIN,
        require_account=True,
        tokenizer="smollm2",
        metrics=Path("/m"),
        refresh=2.5,
        ingress=IngressConfig(accounts=Path("/k/accounts"), key=Path("/k/ingress"), logprobs="pass", self_test=False),
        ledger=LedgerConfig(database="postgresql://u:secret@db/ledger", origin="a/b", retention="digest"),
    )
    assert isinstance(config.min_entropy, float)
    assert "secret" not in repr(config)


def test_the_module_text_is_a_configuration_and_its_defaults(tmp_path: Path) -> None:
    import watermark.serving

    text = str(watermark.serving.__doc__).split("::", 1)[1].split("``TAGGANT_CONFIG``")[0]
    config = ServingConfig.load(written(tmp_path, "\n".join(line.strip() for line in text.splitlines())))
    default = ServingConfig(keyring=config.keyring)
    for name in ("policy", "shadow", "min_entropy", "fields", "require_account", "refresh"):
        assert getattr(config, name) == getattr(default, name)
    assert (config.ingress.logprobs, config.ingress.self_test) == ("strip", True)
    assert config.ledger.retention == default.ledger.retention


def test_what_is_not_said_has_a_default() -> None:
    config = ServingConfig.from_environment({"TAGGANT_KEYRING": "key.json"})
    assert config == ServingConfig(keyring=Path("key.json"))
    assert (config.policy, config.fields) == (Policy.REQUIRED, FieldTrust.SIGNED)
    assert ServingConfig.from_environment({"TAGGANT_POLICY": "off"}) == ServingConfig(policy=Policy.OFF)


def test_the_environment_stands_above_the_file(tmp_path: Path) -> None:
    config = ServingConfig.from_environment(
        {
            "TAGGANT_CONFIG": str(written(tmp_path, WHOLE)),
            "TAGGANT_KEYRING": "/other.json",
            "TAGGANT_SCOPE": "s",
            "TAGGANT_POLICY": "required",
            "TAGGANT_SHADOW": "False",
            "TAGGANT_LEDGER": "sqlite:///x.db",
        }
    )
    assert (config.keyring, config.scope, config.policy, config.shadow) == (
        Path("/other.json"),
        "s",
        Policy.REQUIRED,
        False,
    )
    assert config.ledger == LedgerConfig(database="sqlite:///x.db", origin="a/b", retention="digest")
    assert config.ingress.logprobs == "pass"
    empty = {"TAGGANT_CONFIG": str(written(tmp_path, WHOLE)), "TAGGANT_KEYRING": "", "TAGGANT_SHADOW": ""}
    assert ServingConfig.from_environment(empty) == ServingConfig.load(written(tmp_path, WHOLE))


def test_the_environment_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAGGANT_CONFIG", raising=False)
    monkeypatch.setenv("TAGGANT_KEYRING", "mine.json")
    assert ServingConfig.from_environment().keyring == Path("mine.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no key file is named: set TAGGANT_KEYRING"),
        ('policy = "required"', "TAGGANT_POLICY=off serves unmarked"),
        ("keyring = 5", "keyring: expected text, got int"),
        ('keyring = "k"\nkeyrings = "k"', "'keyrings' is not known; there are keyring, scope"),
        ('keyring = "k"\npolicy = "mandatory"', "policy: expected required, optional, off; got 'mandatory'"),
        ('keyring = "k"\nfields = "Plain"', "fields: expected signed, plain; got 'Plain'"),
        ('keyring = "k"\nshadow = 1', "shadow: expected bool, got int"),
        ('keyring = "k"\nshadow = "true"', "shadow: expected bool, got str"),
        ('keyring = "k"\nmin_entropy = "1"', "min_entropy: expected float, got str"),
        ('keyring = "k"\nmin_entropy = true', "min_entropy: expected float, got bool"),
        ('keyring = "k"\nmin_entropy = -1', "min_entropy: expected 0 or more bits"),
        ('keyring = "k"\nmin_entropy = nan', "min_entropy: expected 0 or more bits"),
        ('keyring = "k"\nrefresh = 0', "refresh: more than 0 seconds"),
        ('keyring = "k"\nrefresh = inf', "refresh: more than 0 seconds, a day at most"),
        (f'keyring = "k"\nmin_entropy = 1{"0" * 400}', "min_entropy: expected float"),
        (f'keyring = "k"\nmin_entropy = 1{"0" * 5000}', "not TOML"),
        ('keyring = "k"\nrefresh = nan', "refresh: more than 0 seconds"),
        ('keyring = "k"\ningress = "a"', r"\[ingress\] is a table"),
        ('keyring = "k"\nledger = ["a"]', r"\[ledger\] is a table"),
        ('keyring = "k"\n[ingress]\nlogprobs = "keep"', 'ingress.logprobs: expected "strip" or "pass", got \'keep\''),
        ('keyring = "k"\n[ingress]\nself_test = 1', r"\[ingress\]: self_test: expected bool, got int"),
        ('keyring = "k"\n[ingress]\nkeys = "a"', r"\[ingress\]: 'keys' is not known"),
        ('keyring = "k"\n[ledger]\nretention = 1', r"\[ledger\]: retention: expected text, got int"),
        ('keyring = "k"\n[proxy]\na = 1', "'proxy' is not known"),
        ("keyring = ", "not TOML"),
        ('keyring = "\x01"', "not TOML"),
    ],
)
def test_a_malformed_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        ServingConfig.load(written(tmp_path, text))
    assert str(caught.value).isprintable()


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the configuration"):
        ServingConfig.from_environment({"TAGGANT_CONFIG": str(tmp_path / "none")})
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not TOML"):
        ServingConfig.load(tmp_path / "bytes")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "no key file is named"),
        ({"TAGGANT_KEYRING": "k", "TAGGANT_POLICY": "no"}, "the environment: policy: expected required"),
        ({"TAGGANT_KEYRING": "k", "TAGGANT_SHADOW": "yes"}, "TAGGANT_SHADOW: expected 0 or 1, got 'yes'"),
    ],
)
def test_a_malformed_environment_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ServingConfig.from_environment(environment)


def test_a_ledger_in_the_environment_needs_a_table_in_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'keyring = "k"\nledger = 5')
    with pytest.raises(UsageError, match=r"\[ledger\] is a table"):
        ServingConfig.from_environment({"TAGGANT_CONFIG": str(path), "TAGGANT_LEDGER": "sqlite:///x"})
