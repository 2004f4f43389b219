"""The `taggant` command: parses, calls one function, prints. No logic.

Exit codes: 0 ran, 1 internal, 2 usage, 3 malformed input, 4 key problem, 5 verification
failed, 7 unfinished, 130 interrupted. A verdict
changes the code only with ``--exit-code``.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from detect.corpus import Corpus
    from detect.e_process import SequentialResult
    from detect.mark import Mark
    from detect.near_duplicates import NearDuplicates
    from detect.portions import Sifter
    from detect.records import Document, Fields
    from detect.reference_choice import ChosenReference, ReferenceChoice
    from detect.reference_reader import ReferenceReader
    from detect.supervised import SupervisedTest
    from detect.tally_build import Build
    from detect.tally_file import TallyFile
    from detect.top_logprobs import LogprobsResult
    from detect.weighting import Weighting
    from watermark.tokenizer import Tokenizer

__all__ = ["app", "main"]

app = typer.Typer(
    name="taggant",
    help="Watermark a language model's answers, and test with an exact p-value whether another model learned them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
keys = typer.Typer(help="Make and show key files.", no_args_is_help=True, rich_markup_mode=None)
detect = typer.Typer(help="Test texts and models for a key's mark.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys, name="keys")
app.add_typer(detect, name="detect")
study = typer.Typer(
    help="Train students at doses of marked answers, and measure every test on them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(study, name="study")
accounts = typer.Typer(
    help="Who calls a server: the file that maps API keys to accounts.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(accounts, name="accounts")
ledger = typer.Typer(
    help="What was served, to which account, under which key: append, publish, prove, verify, export.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(ledger, name="ledger")
evidence = typer.Typer(
    help="A study that a stranger can recompute: plan, score, open, create, verify.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(evidence, name="evidence")
tally = typer.Typer(
    help="The evidence of any amount of text, without the key: build, merge, score where the key is.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(tally, name="tally")


class TableFormat(StrEnum):
    """How tables are printed."""

    text = "text"
    latex = "latex"
    csv = "csv"


class Retention(StrEnum):
    """What `watermark.ledger.record.Retention` is, which brings NumPy with it: too slow for `--help`."""

    ids = "ids"
    text = "text"
    both = "both"
    digest = "digest"


class Prompts(StrEnum):
    """What `detect.tally.PromptPolicy` is, which brings NumPy with it: too slow for `--help`."""

    own = "own"
    clean = "clean"
    marked = "marked"


Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT",
        help="JSON Lines, CSV, Parquet or text, also .gz and .zst; files, folders, globs, or - for standard input.",
    ),
]
KeyringOption = Annotated[
    list[Path] | None, typer.Option("--keyring", "-k", metavar="FILE", help="Key file; may be given several times.")
]
KeyFileOption = Annotated[Path, typer.Option("--keyring", "-k", metavar="FILE", help="Key file.")]
NewScopeOption = Annotated[str, typer.Option("--scope", metavar="NAME", help="The scope.")]
MarkOption = Annotated[
    list[str] | None,
    typer.Option(
        "--mark",
        metavar="SCHEME:FILE",
        help="A mark made by another server, with the file that configured it: vllm:FILE, transformers:FILE, "
        "synthid:FILE or textseal:FILE; may be given several times.",
    ),
]
TestOption = Annotated[
    list[str] | None,
    typer.Option(
        "--test",
        metavar="NAME",
        help="A weighted test, e.g. centred; may be given several times (p is then multiplied by their number). "
        "[default: quasi-score and centred]",
    ),
]
ScopeOption = Annotated[
    list[str] | None,
    typer.Option("--scope", metavar="NAME", help="Scope in the key file; may be given several times. [default: all]"),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        "-t",
        metavar="NAME_OR_FILE",
        help="The generating model's: smollm2, a tiktoken encoding, a ranks file X.tiktoken with X.json, or a "
        "tokenizer.json. [default: smollm2 where the scope is for it]",
    ),
]
PromptsOption = Annotated[
    Prompts,
    typer.Option(
        help="Windows left out for standing in a prompt: those of the record's own, none since the prompts are known "
        "to hold no marked text, or those of every record's since they are known to hold it."
    ),
]


def _probability(level: float) -> float:
    if not 0 < level < 1:
        raise typer.BadParameter(f"expected a probability between 0 and 1, got {level:g}")
    return level


LevelOption = Annotated[
    float, typer.Option(callback=_probability, help="Level of the verdict: what p is held against.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
MaxMalformedOption = Annotated[int, typer.Option(min=0, help="Malformed records that are tolerated (and counted).")]
RetokenizeOption = Annotated[
    bool, typer.Option("--retokenize", help="Tokenise the text even where a record has token ids.")
]
ExitCodeOption = Annotated[
    int | None, typer.Option(min=8, max=125, help="Exit with this code if the verdict is a finding.")
]
PromptFieldOption = Annotated[str, typer.Option(metavar="NAME", help="Field of a record: what was asked.")]
ResponseFieldOption = Annotated[str, typer.Option(metavar="NAME", help="Field of a record: what was answered.")]
TextFieldOption = Annotated[str, typer.Option(metavar="NAME", help="Field of a record: a text by itself.")]
MessagesFieldOption = Annotated[str, typer.Option(metavar="NAME", help="Field of a record: a conversation.")]
IdsFieldOption = Annotated[str, typer.Option(metavar="NAME", help="Field of a record: the token ids answered.")]
ReferenceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="FILE",
        help="What another model says: probabilities made by --save-reference (.npz), or outputs of a clean model. "
        "Of several references the one is used under which the outputs are likeliest.",
    ),
]
ReferenceModelOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME_OR_PATH",
        help="Compute a reference by letting this model read the outputs: the suspect's public base, a clean twin, "
        "or the unmarked teacher (extra hf); may be given several times.",
    ),
]

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--db",
        metavar="FILE_OR_URL",
        help="The ledger: a SQLite file, or postgresql://USER@HOST/DATABASE. [default: the environment variable "
        "TAGGANT_LEDGER, where a URL may hold a password]",
    ),
]
OriginOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Of the log. [default: the only one in the ledger]")
]
LogOption = Annotated[Path, typer.Option("--log", metavar="DIR", help="The publisher's commitment log.")]
OptionalLogOption = Annotated[
    Path | None, typer.Option("--log", metavar="DIR", help="Say so in this commitment log; wants --key.")
]
PublisherKeyOption = Annotated[
    Path, typer.Option("--key", metavar="FILE", help="The publisher's private key (taggant ledger create-key).")
]
OptionalPublisherKeyOption = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="The publisher's private key.")
]
PublisherOption = Annotated[
    str,
    typer.Option(
        metavar="KEY_OR_FILE", help="The publisher's public key (NAME+ID+BASE64), from elsewhere than the bundle."
    ),
]
TsaRootOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Roots of the timestamp's authority, PEM (extra timestamp).")
]
WorkOption = Annotated[Path, typer.Option("--work", metavar="DIR", help="The study's folder.")]
NoteKeyOption = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", help="Sign the log's head now, with this key.")
]


@app.callback(invoke_without_command=True)
def taggant(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Watermark a language model's answers, and test whether another model learned them."""
    if version:
        from watermark import __version__

        typer.echo(f"taggant {__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a self-contained HTML report here (extra report).")
    ] = None,
    decoys: Annotated[int, typer.Option(min=0, help="Decoy keys a suspect.")] = 999,
    json: JsonOption = False,
) -> None:
    """Tell the whole story on shipped real data: a teacher, its student and a clean twin."""
    from detect.demo import run_demo
    from detect.terminal import busy, show

    with busy("testing the teacher, the student and the clean twin"):
        story = run_demo(decoys=decoys, growth=out is not None)
    report = None
    if out is not None:
        from detect.report import write_report

        with busy("writing the report"):
            report = write_report(story, out)
    if json:
        from detect.result_json import demo_json

        _print_json(demo_json(story))
        return
    from detect.result_tables import demo_story

    show(demo_story(story))
    if report is not None:
        typer.echo(f"\nreport: {report}")


@keys.command("create")
def keys_create(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The key file to create.")],
    scope: Annotated[str, typer.Option(metavar="NAME", help="What shares a fleet signal.")] = "default",
    window: Annotated[int, typer.Option(min=1, max=8, help="Ids hashed for each choice.")] = 2,
    delta: Annotated[float, typer.Option(help="Logits added to green tokens.")] = 2.0,
    fleet_k: Annotated[int, typer.Option(min=1, max=255, help="Gamma of the fleet lanes in units of 1/256.")] = 64,
    account_lanes: Annotated[int, typer.Option(help="Lanes that carry account marks: 16 or 0.")] = 16,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", "-t", metavar="NAME_OR_FILE", help="The generating model's.")
    ] = "smollm2",
    special: Annotated[
        list[str] | None,
        typer.Option(metavar="ID_OR_TOKEN", help="A further special id that the tokenizer does not flag."),
    ] = None,
    root_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="32 raw bytes from an HSM or KMS; by default they are drawn.")
    ] = None,
    pending: Annotated[
        bool, typer.Option("--pending", help="Mark nothing with it before `keys activate`, which puts randomness in.")
    ] = False,
) -> None:
    """Create a key file with one scope, readable by you alone."""
    from watermark.keyring import create_key_file

    keyring = create_key_file(
        out,
        scope=scope,
        window=window,
        delta=delta,
        fleet_k=fleet_k,
        account_lanes=account_lanes,
        tokenizer=_tokenizer(tokenizer),
        special=special or [],
        root_file=root_file,
        state="pending" if pending else "active",
    )
    keys_of = keyring.scope(scope)
    typer.echo(f"{out}: scope {scope}, fingerprint {keys_of.fingerprint}")
    typer.echo(f"Keep it secret. Publish its commitments before it serves: taggant keys show --keyring {out} --json")


@keys.command("show")
def keys_show(
    keyring: KeyFileOption,
    json: JsonOption = False,
) -> None:
    """Show what is public of a key file: scopes, parameters, fingerprints, commitments. No secret is shown."""
    from watermark.keyring import Keyring, public_view

    view = public_view(Keyring.load(keyring))
    if json:
        _print_json(view)
        return
    for scope in view["scopes"]:
        params = scope["params"]
        typer.echo(f"scope {scope['scope']}: {scope['state']}, delta {scope['delta']:g}")
        typer.echo(f"  fingerprint {scope['fingerprint']}")
        typer.echo(
            f"  window {params['window']}, gamma {params['fleet_k']}/256, account lanes {params['account_lanes']}, "
            f"{len(params['special_ids'])} special ids, tokenizer {params['tokenizer'][:16]}…"
        )
        typer.echo(f"  {len(scope['commitments'])} commitments (--json prints them)")


@keys.command("add")
def keys_add(
    keyring: KeyFileOption,
    scope: NewScopeOption,
    delta: Annotated[
        float | None, typer.Option(help="Logits added to green tokens. [default: the last scope's]")
    ] = None,
) -> None:
    """Add a pending scope under the same root, with the parameters of the last one."""
    from watermark.life_cycle import add_scope, update_key_file

    changed = update_key_file(
        keyring,
        lambda old: add_scope(
            old, scope, params=old.scopes[-1].params, delta=old.scopes[-1].delta if delta is None else delta
        ),
    )
    typer.echo(f"{keyring}: scope {scope} is pending, fingerprint {changed.scope(scope).fingerprint}")
    typer.echo(f"Publish its commitments (taggant keys show --keyring {keyring} --json), then taggant keys activate")


@keys.command("commit")
def keys_commit(keyring: KeyFileOption, scope: NewScopeOption, log: LogOption, key: PublisherKeyOption) -> None:
    """Commit to a scope's seeds in the publisher's log, before the scope is activated. Publish the log's folder."""
    from watermark.activation import commit
    from watermark.keyring import Keyring
    from watermark.signed_note import NoteSigner

    leaf = commit(Keyring.load(keyring), scope, log=log, signer=NoteSigner.load(key))
    typer.echo(f"{log}: entry {leaf.index}, scope {scope}, leaf {leaf.hash}")
    typer.echo(f"Publish {log} now. Then draw public randomness: taggant keys activate --scope {scope} --log {log} ...")


@keys.command("activate")
def keys_activate(
    keyring: KeyFileOption,
    scope: NewScopeOption,
    activation: Annotated[
        str | None,
        typer.Option(
            "--activation",
            "--value",
            metavar="TEXT",
            help="Public randomness drawn after the commitments were published: a beacon's round, an auditor's nonce; "
            "64 hexadecimal digits, or with --log any text, which is hashed. Without it every report says that the "
            "key's randomness cannot be verified.",
        ),
    ] = None,
    log: OptionalLogOption = None,
    key: OptionalPublisherKeyOption = None,
    beacon: Annotated[str | None, typer.Option(metavar="NAME", help="The beacon that it is of.")] = None,
    round: Annotated[int | None, typer.Option(min=0, help="The beacon's round.")] = None,
    auditor: Annotated[str | None, typer.Option(metavar="NAME", help="The auditor whose nonce it is.")] = None,
) -> None:
    """Begin to mark with a pending scope. A server that watches this file takes it up without a restart."""
    from watermark.activation import activate_scope

    with_randomness = activate_scope(
        keyring, scope, value=activation, log=log, key=key, beacon=beacon, round=round, auditor=auditor
    )
    typer.echo(f"{keyring}: scope {scope} is active")
    if not with_randomness:
        typer.echo("No randomness: every report will say that the key's randomness cannot be verified.", err=True)


@keys.command("timestamp")
def keys_timestamp(
    log: LogOption,
    tsa: Annotated[str, typer.Option(metavar="URL", help="A timestamping authority (RFC 3161).")],
) -> None:
    """Have another party say when the log's newest head existed (extra timestamp). Do it after each step."""
    from watermark.commitment_log import CommitmentLog
    from watermark.timestamp import take_timestamp

    path = CommitmentLog(log).timestamp(lambda head: take_timestamp(head, url=tsa))
    typer.echo(f"{path}: a token over the newest head")


@keys.command("retire")
def keys_retire(
    keyring: KeyFileOption,
    scope: NewScopeOption,
    log: OptionalLogOption = None,
    key: OptionalPublisherKeyOption = None,
) -> None:
    """Mark nothing more with an active scope. It is still detected."""
    from watermark.activation import end_scope

    end_scope(keyring, scope, "retired", log=log, key=key)
    typer.echo(f"{keyring}: scope {scope} is retired")


@keys.command("compromise")
def keys_compromise(
    keyring: KeyFileOption,
    scope: NewScopeOption,
    log: OptionalLogOption = None,
    key: OptionalPublisherKeyOption = None,
) -> None:
    """Say that somebody else may have a scope's key: what is collected from now on is no evidence."""
    from watermark.activation import end_scope

    end_scope(keyring, scope, "compromised", log=log, key=key)
    typer.echo(f"{keyring}: scope {scope} is compromised")


@keys.command("derive")
def keys_derive(
    keyring: KeyFileOption,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The key file to create.")],
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", metavar="NAME", help="May be given several times. [default: every active scope]"),
    ] = None,
) -> None:
    """Make the key file of a serving host: single scopes, and no root."""
    from watermark.keyring import Keyring
    from watermark.life_cycle import derive

    derived = derive(Keyring.load(keyring), scope or ())
    derived.write(out)
    typer.echo(f"{out}: {', '.join(one.name for one in derived.scopes)}; no root is in it")


@keys.command("ingress")
def keys_ingress(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The key file to create.")],
) -> None:
    """Create the key that an ingress on another host shares with its server; copy the file to both."""
    from watermark.ticket import create_ingress_key

    create_ingress_key(out)
    typer.echo(f"{out}: name it as key under [ingress], at the ingress and at the server")


@accounts.command("add")
def accounts_add(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="Account id that the API key stands for.")],
    accounts_map: Annotated[
        Path, typer.Option("--map", metavar="FILE", help="File of accounts; made if there is none.")
    ],
    off: Annotated[bool, typer.Option("--off", help="Serve this caller unmarked.")] = False,
) -> None:
    """Add a caller. The API key is read from standard input, and only its SHA-256 is kept."""
    from watermark.accounts import add_account

    add_account(accounts_map, account, _api_key(), mark=not off)
    typer.echo(f"{accounts_map}: {account}{', unmarked' if off else ''}. A server takes it up by itself")


@accounts.command("list")
def accounts_list(
    accounts_map: Annotated[Path, typer.Option("--map", metavar="FILE", help="File of accounts.")],
) -> None:
    """List the accounts, with the beginning of each API key's SHA-256."""
    from watermark.accounts import AccountMap

    for digest, ticket in AccountMap.load(accounts_map).callers.items():
        typer.echo(f"{digest[:12]}…  {ticket.account}{'' if ticket.mark else '  off'}")


def _api_key() -> str:
    """Return an API key from standard input: not from the arguments, which other users of the host can read."""
    if sys.stdin.isatty():
        return str(typer.prompt("API key", hide_input=True))
    return sys.stdin.readline().rstrip("\r\n")


@app.command()
def generate(
    model: Annotated[
        str, typer.Option(metavar="NAME_OR_PATH", help="smollm2, a folder, a .gguf file or a hub name (extra hf).")
    ],
    prompts: Annotated[
        Path, typer.Option(metavar="FILE", help='JSON Lines with a "prompt", or text with one prompt a line.')
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON Lines to write; an interrupted run is resumed.")],
    keyring: Annotated[Path | None, typer.Option("--keyring", "-k", metavar="FILE", help="Mark with this key.")] = None,
    scope: Annotated[str | None, typer.Option(metavar="NAME", help="Scope in the key file.")] = None,
    account: Annotated[
        str | None, typer.Option(metavar="ID", help="For whom: marks the account lanes too. [default: nobody]")
    ] = None,
    unmarked: Annotated[bool, typer.Option("--unmarked", help="Do not mark: for clean twins and controls.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", "-t", metavar="NAME_OR_FILE", help="[default: the model's own]")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Ids an answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy decoding.")] = 1.0,
    min_entropy: Annotated[
        float, typer.Option(min=0, help="Leave steps with fewer bits of entropy alone (code, tool calls).")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts answered side by side.")] = 32,
) -> None:
    """Answer prompts with a local model, watermarked."""
    from watermark.errors import UsageError
    from watermark.generation import Sampling, read_prompts, refuse_existing
    from watermark.generation import generate as run

    if (keyring is None) != unmarked:
        raise UsageError("name a key with --keyring, or say --unmarked: answers are never left unmarked by accident")
    green_list = None
    if keyring is not None:
        from watermark.green_list import GreenList
        from watermark.keyring import Keyring

        green_list = GreenList(Keyring.load(keyring).scope_to_mark(scope), min_entropy=min_entropy)
    refuse_existing(out)
    asked = read_prompts(prompts)
    from detect.terminal import busy, progress

    with busy(f"loading {model}"):
        from watermark.models import load_model

        loaded = load_model(model, tokenizer=tokenizer)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed, batch_size=batch_size)
    with progress("answers", len(asked)) as advance:
        tokens = run(
            loaded, asked, green_list=green_list, out=out, account=account, sampling=sampling, progress=advance
        )
    typer.echo(f"{out}: {len(asked):,} answers, {tokens:,} tokens", err=True)


@detect.command("text")
def detect_text(
    inputs: Inputs,
    keyring: KeyringOption = None,
    scope: ScopeOption = None,
    mark: MarkOption = None,
    tokenizer: TokenizerOption = None,
    prompts: PromptsOption = Prompts.own,
    level: LevelOption = 1e-6,
    max_malformed: MaxMalformedOption = 0,
    retokenize: RetokenizeOption = False,
    prompt_field: PromptFieldOption = "prompt",
    response_field: ResponseFieldOption = "response",
    text_field: TextFieldOption = "text",
    messages_field: MessagesFieldOption = "messages",
    ids_field: IdsFieldOption = "token_ids",
    exit_code: ExitCodeOption = None,
    json: JsonOption = False,
) -> None:
    """Test whether texts are marked: each document by itself, and all of them pooled."""
    from detect.marked_text import detect_text as run
    from detect.records import Fields
    from detect.tally import PromptPolicy
    from detect.terminal import show
    from detect.verdict import Verdict
    from detect.warning import warnings_of
    from watermark.errors import UsageError

    marks = _marks(keyring, scope, mark)
    if len(marks) != 1:
        raise UsageError(
            f"detect text tests one key, and {len(marks)} were given: give one key file, and name the scope "
            "with --scope"
        )
    key, published = marks[0]
    chosen = _tokenizer_of(tokenizer, [key])
    fields = Fields(
        prompt=prompt_field, response=response_field, text=text_field, messages=messages_field, token_ids=ids_field
    )
    corpus = _corpus(
        inputs,
        chosen,
        key.window,
        retokenize=retokenize,
        max_malformed=max_malformed,
        fields=fields,
        every_prompt=prompts is Prompts.marked,
    )
    result = run(corpus, key, policy=PromptPolicy(prompts.value), level=level)
    warned = warnings_of(corpus, key, published=published)
    if json:
        from detect.result_json import text_json

        _print_json(text_json(result, corpus, warned, tokenizer=chosen.digest()))
    else:
        from detect.result_tables import text_tables

        show(text_tables(result, corpus, warned))
    if exit_code is not None and result.pooled_verdict is Verdict.DEPENDS:
        raise typer.Exit(exit_code)


@detect.command("show")
def detect_show(
    inputs: Inputs,
    keyring: KeyringOption = None,
    scope: ScopeOption = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page instead of colours (extra report).")
    ] = None,
    first: Annotated[int, typer.Option(min=1, help="Texts shown, from the first on.")] = 10,
    tokenizer: TokenizerOption = None,
    prompts: PromptsOption = Prompts.own,
    max_malformed: MaxMalformedOption = 0,
    retokenize: RetokenizeOption = False,
    prompt_field: PromptFieldOption = "prompt",
    response_field: ResponseFieldOption = "response",
    text_field: TextFieldOption = "text",
    messages_field: MessagesFieldOption = "messages",
    ids_field: IdsFieldOption = "token_ids",
) -> None:
    """Show texts with their green tokens in colour, to the key's owner. It is a view and no test."""
    from detect.colours import colour_texts, text_of_colours, write_colours
    from detect.mark import GreenListMark
    from detect.records import Fields
    from detect.tally import PromptPolicy
    from detect.terminal import show
    from watermark.errors import UsageError

    marks = _marks(keyring, scope, None)
    key = marks[0][0] if len(marks) == 1 else None
    if not isinstance(key, GreenListMark):
        raise UsageError(f"detect show colours by one key, and {len(marks)} were given: name one scope with --scope")
    chosen = _tokenizer_of(tokenizer, [key])
    fields = Fields(
        prompt=prompt_field, response=response_field, text=text_field, messages=messages_field, token_ids=ids_field
    )
    corpus = _corpus(
        inputs,
        chosen,
        key.window,
        retokenize=retokenize,
        max_malformed=max_malformed,
        fields=fields,
        every_prompt=False,
    )
    texts = colour_texts(corpus.first(first), key, chosen, policy=PromptPolicy(prompts.value))
    if html is None:
        show(text_of_colours(texts))
    else:
        typer.echo(write_colours(texts, html, scope=key.scope.name))
    if len(corpus.responses) > first:
        typer.echo(f"{first} of {len(corpus.responses):,} texts; --first N shows more", err=True)


@detect.command("model")
def detect_model(
    inputs: Inputs,
    keyring: KeyringOption = None,
    scope: ScopeOption = None,
    mark: MarkOption = None,
    reference: ReferenceOption = None,
    reference_model: ReferenceModelOption = None,
    save_reference: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the reference that is used (.npz) for --reference.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Likeliest tokens kept a position of a computed reference.")] = 32,
    tokenizer: TokenizerOption = None,
    test: TestOption = None,
    looks: Annotated[
        int | None,
        typer.Option(min=1, help="Also look so many times at the outputs in their order, by a p valid at every look."),
    ] = None,
    planned_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --looks, the size of the text that is to be collected, the same at every call. [default: what "
            "is here, and then the looks are valid for this text alone and not over calls on a growing one]",
        ),
    ] = None,
    served: Annotated[
        str | None,
        typer.Option(
            metavar="INPUT",
            help="Also test the windows of these answers that the key marked, by their logged ids, in the order of "
            "their start.",
        ),
    ] = None,
    served_accounts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --served: count the windows that were first served to one of these accounts."
        ),
    ] = None,
    logprobs: Annotated[
        bool,
        typer.Option(
            "--logprobs",
            help="Also test the log-probabilities that records hold (taggant collect --logprobs 20), and score those "
            "records by the ids that they name.",
        ),
    ] = False,
    prompts: PromptsOption = Prompts.own,
    decoys: Annotated[int, typer.Option(min=0, help="Decoy keys.")] = 999,
    decoy_seed: Annotated[int, typer.Option(min=0, help="From which they are drawn.")] = 0,
    level: LevelOption = 1e-6,
    max_malformed: MaxMalformedOption = 0,
    retokenize: RetokenizeOption = False,
    prompt_field: PromptFieldOption = "prompt",
    response_field: ResponseFieldOption = "response",
    text_field: TextFieldOption = "text",
    messages_field: MessagesFieldOption = "messages",
    ids_field: IdsFieldOption = "token_ids",
    exit_code: ExitCodeOption = None,
    json: JsonOption = False,
) -> None:
    """Test whether a model was trained on marked answers, from its outputs."""
    from detect.distillation import detect_model as run
    from detect.records import Fields
    from detect.reference_choice import ReferenceChoice
    from detect.tally import PromptPolicy
    from detect.terminal import busy, show
    from detect.verdict import Verdict
    from detect.warning import warnings_of, warnings_of_model

    choice = ReferenceChoice(
        files=tuple(reference or ()), models=tuple(reference_model or ()), save=save_reference, top=top
    )
    weightings = _weightings(test)
    marks = _marks(keyring, scope, mark)
    chosen = _tokenizer_of(tokenizer, [key for key, _ in marks])
    fields = Fields(
        prompt=prompt_field, response=response_field, text=text_field, messages=messages_field, token_ids=ids_field
    )
    window = min(key.window for key, _ in marks)
    reading = None
    if logprobs:
        from detect.top_lists import LogprobReader
        from watermark.errors import UsageError

        if retokenize:
            raise UsageError("--logprobs are of the ids that the endpoint drew: leave --retokenize out")
        reading = LogprobReader(chosen)
    corpus = _corpus(
        inputs,
        chosen,
        window,
        retokenize=retokenize,
        max_malformed=max_malformed,
        fields=fields,
        every_prompt=prompts is Prompts.marked,
        passing=reading,
    )
    lists = None if reading is None else reading.lists(corpus)
    reference_used = _reference(
        choice, corpus, chosen, window, fields, fingerprints=frozenset(key.fingerprint for key, _ in marks)
    )
    with busy(f"testing under the key and {decoys:,} decoys"):
        results = run(
            corpus,
            [key for key, _ in marks],
            reference=None if reference_used is None else reference_used.reference,
            weightings=weightings,
            policy=PromptPolicy(prompts.value),
            decoys=decoys,
            decoy_seed=decoy_seed,
            level=level,
        )
    candidates = () if reference_used is None else reference_used.candidates
    used = None if reference_used is None else reference_used.reference
    policy = PromptPolicy(prompts.value)
    sequential: list[SequentialResult | None] = [None] * len(marks)
    if looks is not None:
        from detect.e_process import sequential_test

        sequential = [
            sequential_test(
                corpus,
                key,
                reference=used,
                looks=looks,
                planned_tokens=planned_tokens,
                policy=policy,
                level=level / len(marks),
            )
            for key, _ in marks
        ]
    supervised: list[SupervisedTest | None] = [None] * len(marks)
    if served is not None:
        from detect.registry import Registry
        from detect.supervised import detect_served

        answers = _corpus([served], chosen, 0, fields=fields)
        of = None if served_accounts is None else Registry.load(served_accounts).accounts
        supervised = [
            detect_served(corpus, key, answers, reference=used, policy=policy, accounts=of) for key, _ in marks
        ]
    listed: list[LogprobsResult | None] = [None] * len(marks)
    if lists is not None:
        from detect.top_logprobs import detect_logprobs

        listed = [
            detect_logprobs(corpus, lists, key, reference=used, policy=policy, decoys=decoys, decoy_seed=decoy_seed)
            for key, _ in marks
        ]
    told = [
        (result, warnings_of_model(result, warnings_of(corpus, key, published=published)))
        for result, (key, published) in zip(results, marks, strict=True)
    ]
    if json:
        from detect.result_json import model_json, models_json

        _print_json(
            models_json(
                [
                    model_json(
                        result,
                        corpus,
                        warned,
                        tokenizer=chosen.digest(),
                        candidates=candidates,
                        sequential=sequential[number],
                        supervised=supervised[number],
                        logprobs=listed[number],
                    )
                    for number, (result, warned) in enumerate(told)
                ]
            )
        )
    else:
        from detect.result_tables import (
            does_not_say,
            logprobs_table,
            model_tables,
            sequential_table,
            supervised_table,
        )

        for number, (result, warned) in enumerate(told):
            if number:
                typer.echo()
            show(model_tables(result, corpus, warned, candidates))
            if (looked := sequential[number]) is not None:
                show(sequential_table(looked))
            if (tested := supervised[number]) is not None:
                show(supervised_table(tested))
            if (given := listed[number]) is not None:
                show(logprobs_table(given))
        show(does_not_say())
    if exit_code is not None and any(result.verdict is Verdict.DEPENDS for result in results):
        raise typer.Exit(exit_code)


@detect.command("accounts")
def detect_accounts(
    inputs: Inputs,
    keyring: KeyringOption = None,
    scope: ScopeOption = None,
    accounts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="All accounts registered, one id a line, or the ingress's file of callers."),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Attribute each document by itself.")] = False,
    cohorts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Clusters of accounts (CSV: account,cluster): which of them fed a student?"),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Part of the marked answers that one cluster may have supplied. [default: 1 / clusters]"),
    ] = None,
    reference: ReferenceOption = None,
    reference_model: ReferenceModelOption = None,
    first: Annotated[int, typer.Option(min=0, help="Accounts shown beside those that were found.")] = 5,
    tokenizer: TokenizerOption = None,
    prompts: PromptsOption = Prompts.own,
    level: LevelOption = 1e-6,
    max_malformed: MaxMalformedOption = 0,
    retokenize: RetokenizeOption = False,
    prompt_field: PromptFieldOption = "prompt",
    response_field: ResponseFieldOption = "response",
    text_field: TextFieldOption = "text",
    messages_field: MessagesFieldOption = "messages",
    ids_field: IdsFieldOption = "token_ids",
    exit_code: ExitCodeOption = None,
    json: JsonOption = False,
) -> None:
    """Whose answers a text is made of; with --cohorts, which cluster of accounts a student learned from."""
    from detect.account_tables import attribution_json, attribution_tables, cohorts_json, cohorts_tables
    from detect.attribution import attribute
    from detect.cohorts import detect_cohorts
    from detect.mark import GreenListMark
    from detect.records import Fields
    from detect.reference_choice import ReferenceChoice
    from detect.registry import Cohorts, Registry
    from detect.tally import PromptPolicy
    from detect.terminal import progress, show
    from detect.warning import warnings_of
    from watermark.errors import UsageError

    if (accounts is None) == (cohorts is None):
        raise UsageError("give --accounts FILE for whose answers a text is, or --cohorts FILE for who fed a student")
    if cohorts is None and (reference or reference_model or share is not None):
        raise UsageError("--reference, --reference-model and --share go with --cohorts")
    if cohorts is not None and (each or not (reference or reference_model)):
        raise UsageError("--cohorts takes the outputs together, and wants --reference or --reference-model")
    marks = _marks(keyring, scope, None)
    key = marks[0][0] if len(marks) == 1 else None
    if not isinstance(key, GreenListMark):
        raise UsageError(f"detect accounts takes one key, and {len(marks)} were given: name one scope with --scope")
    chosen = _tokenizer_of(tokenizer, [key])
    fields = Fields(
        prompt=prompt_field, response=response_field, text=text_field, messages=messages_field, token_ids=ids_field
    )
    corpus = _corpus(
        inputs,
        chosen,
        key.window,
        retokenize=retokenize,
        max_malformed=max_malformed,
        fields=fields,
        every_prompt=prompts is Prompts.marked,
    )
    warned = warnings_of(corpus, key, published=marks[0][1])
    policy = PromptPolicy(prompts.value)
    if cohorts is not None:
        choice = ReferenceChoice(files=tuple(reference or ()), models=tuple(reference_model or ()), save=None, top=32)
        used = _reference(choice, corpus, chosen, key.window, fields, fingerprints=frozenset({key.fingerprint}))
        if used is None:
            raise UsageError("--cohorts wants --reference or --reference-model")
        clusters = Cohorts.load(cohorts)
        with progress("accounts", sum(map(len, clusters.clusters.values()))) as advance:
            result = detect_cohorts(
                corpus,
                key.scope,
                clusters.clusters,
                reference=used.reference,
                level=level,
                share=share,
                policy=policy,
                on_accounts=advance,
            )
        found = any(each.found for each in result.findings)
        if json:
            _print_json(cohorts_json(result, corpus, warned, cohorts=clusters.sha256, tokenizer=chosen.digest()))
        else:
            show(cohorts_tables(result, corpus, warned))
    elif accounts is not None:
        registry = Registry.load(accounts)
        with progress("accounts", len(registry.accounts)) as advance:
            texts = attribute(
                corpus,
                key.scope,
                registry.accounts,
                each=each,
                level=level,
                shown=first,
                policy=policy,
                on_accounts=advance,
            )
        found = any(text.found for text in texts)
        if json:
            _print_json(
                attribution_json(
                    texts, corpus, warned, level=level, registry=registry.sha256, tokenizer=chosen.digest()
                )
            )
        else:
            show(attribution_tables(texts, corpus, warned, level=level))
    if exit_code is not None and found:
        raise typer.Exit(exit_code)


@detect.command("weights")
def detect_weights(
    suspect: Annotated[str, typer.Argument(metavar="SUSPECT", help="The model: a folder, a .gguf file or a hub name.")],
    contexts: Annotated[
        list[str],
        typer.Option(
            metavar="INPUT",
            help="Texts that both models read: any that is independent of the key, such as the teacher's unmarked "
            "answers; may be given several times.",
        ),
    ],
    reference_model: Annotated[
        str,
        typer.Option(metavar="NAME_OR_PATH", help="The suspect's public base or a clean twin (extra hf)."),
    ],
    keyring: KeyringOption = None,
    scope: ScopeOption = None,
    mark: MarkOption = None,
    contexts_are_marked: Annotated[
        bool,
        typer.Option(
            "--contexts-are-marked",
            help="The contexts are marked answers by their logged ids: each window is scored at its first visit in all "
            "of them.",
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Contexts read at most.")] = None,
    tokenizer: TokenizerOption = None,
    decoys: Annotated[int, typer.Option(min=0, help="Decoy keys.")] = 999,
    decoy_seed: Annotated[int, typer.Option(min=0, help="From which they are drawn.")] = 0,
    level: LevelOption = 1e-6,
    max_malformed: MaxMalformedOption = 0,
    retokenize: RetokenizeOption = False,
    prompt_field: PromptFieldOption = "prompt",
    response_field: ResponseFieldOption = "response",
    text_field: TextFieldOption = "text",
    messages_field: MessagesFieldOption = "messages",
    ids_field: IdsFieldOption = "token_ids",
    exit_code: ExitCodeOption = None,
    json: JsonOption = False,
) -> None:
    """Test whether a model whose weights are at hand was trained on marked answers, from its probabilities."""
    from detect.open_weight import Origin, contexts_of, detect_open_weight
    from detect.records import Fields
    from detect.terminal import busy, progress, show
    from detect.verdict import Verdict
    from detect.warning import warnings_of
    from watermark.models import load_model

    marks = _marks(keyring, scope, mark)
    chosen = _tokenizer_of(tokenizer, [key for key, _ in marks])
    fields = Fields(
        prompt=prompt_field, response=response_field, text=text_field, messages=messages_field, token_ids=ids_field
    )
    window = min(key.window for key, _ in marks)
    corpus = _corpus(contexts, chosen, window, retokenize=retokenize, max_malformed=max_malformed, fields=fields)
    with busy(f"loading {suspect} and {reference_model}"):
        models = [load_model(name, tokenizer=chosen) for name in (suspect, reference_model)]
    origin = Origin.MARKED if contexts_are_marked else Origin.KEY_FREE
    sequences, starts = contexts_of(corpus, models[0], [key for key, _ in marks], origin=origin)
    with progress("contexts", limit) as advance:
        results = detect_open_weight(
            models[0],
            models[1],
            sequences,
            [key for key, _ in marks],
            origin=origin,
            starts=starts,
            limit=limit,
            decoys=decoys,
            decoy_seed=decoy_seed,
            level=level,
            progress=advance,
        )
    told = [
        (result, warnings_of(corpus, key, published=published))
        for result, (key, published) in zip(results, marks, strict=True)
    ]
    if json:
        from detect.result_json import models_json, weights_json

        _print_json(
            models_json([weights_json(result, corpus, warned, tokenizer=chosen.digest()) for result, warned in told])
        )
    else:
        from detect.result_tables import does_not_say, weights_tables

        for result, warned in told:
            show(weights_tables(result, corpus, warned))
        show(does_not_say())
    if exit_code is not None and any(result.verdict is Verdict.DEPENDS for result in results):
        raise typer.Exit(exit_code)


@app.command()
def calibrate(
    inputs: Inputs,
    count: Annotated[int, typer.Option("--keys", min=1, help="Random keys.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="From which they are drawn.")] = 0,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Draw the share of keys at or below each p (extra report)."),
    ] = None,
    window: Annotated[int, typer.Option(min=1, max=8, help="Ids hashed for each choice.")] = 2,
    fleet_k: Annotated[int, typer.Option(min=1, max=255, help="Gamma in units of 1/256.")] = 64,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", "-t", metavar="NAME_OR_FILE", help="As for detect text.")
    ] = "smollm2",
    reference: ReferenceOption = None,
    reference_model: ReferenceModelOption = None,
    test: TestOption = None,
    prompts: PromptsOption = Prompts.own,
    max_malformed: MaxMalformedOption = 0,
    retokenize: RetokenizeOption = False,
    prompt_field: PromptFieldOption = "prompt",
    response_field: ResponseFieldOption = "response",
    text_field: TextFieldOption = "text",
    messages_field: MessagesFieldOption = "messages",
    ids_field: IdsFieldOption = "token_ids",
    json: JsonOption = False,
) -> None:
    """Measure how often the tests call unmarked text marked, over many random keys."""
    if plot is not None:
        from detect.svg_file import check_svg

        check_svg(plot)
    from detect.calibration import calibrate as run
    from detect.records import Fields
    from detect.reference_choice import ReferenceChoice
    from detect.tally import PromptPolicy
    from detect.terminal import progress, show
    from watermark.keys import Params

    choice = ReferenceChoice(files=tuple(reference or ()), models=tuple(reference_model or ()))
    chosen = _tokenizer(tokenizer)
    params = Params(
        tokenizer=chosen.digest(),
        special_ids=chosen.special_ids,
        window=window,
        fleet_k=fleet_k,
        account_lanes=0,
    )
    fields = Fields(
        prompt=prompt_field, response=response_field, text=text_field, messages=messages_field, token_ids=ids_field
    )
    corpus = _corpus(
        inputs,
        chosen,
        window,
        retokenize=retokenize,
        max_malformed=max_malformed,
        fields=fields,
        every_prompt=prompts is Prompts.marked,
    )
    reference_used = _reference(choice, corpus, chosen, window, fields, fingerprints=frozenset())
    weightings = _weightings(test)
    with progress("keys", count) as advance:
        result = run(
            corpus,
            params,
            keys=count,
            seed=seed,
            reference=None if reference_used is None else reference_used.reference,
            weightings=weightings,
            policy=PromptPolicy(prompts.value),
            progress=advance,
        )
    if json:
        from detect.result_json import calibration_json

        _print_json(calibration_json(result, corpus, tokenizer=chosen.digest()))
    else:
        from detect.result_tables import calibration_table

        show(calibration_table(result, corpus))
    if plot is not None:
        from detect.calibration_plot import write_calibration_plot

        typer.echo(f"plot: {write_calibration_plot(result, plot)}", err=True)


@app.command()
def power(
    pilot: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PILOT]",
            help="Some thousand tokens of the suspect, to measure domain and reference on; no key is used. Without it "
            "presets are.",
            show_default=False,
        ),
    ] = None,
    dose: Annotated[
        float | None, typer.Option(help="Share of marked text among the student's training text, above 0 to 1.")
    ] = None,
    tau: Annotated[
        float | None, typer.Option(help="Share of the teacher's tilt that the student carries, in place of --dose.")
    ] = None,
    student: Annotated[
        str, typer.Option(metavar="KIND", help="With --dose, how well students absorb: full, small, lora or ngram.")
    ] = "full",
    absorption: Annotated[
        float | None, typer.Option(help="With --dose, tau at a dose of 1, in place of --student.")
    ] = None,
    delta: Annotated[float, typer.Option(help="Logits added to green tokens.")] = 2.0,
    window: Annotated[int, typer.Option(min=1, max=8, help="Ids hashed for each choice.")] = 2,
    fleet_k: Annotated[int, typer.Option(min=1, max=255, help="Gamma in units of 1/256.")] = 64,
    account_lanes: Annotated[
        int, typer.Option(min=0, max=63, help="Lanes out of 64 that carry account marks and are not tested.")
    ] = 16,
    level: Annotated[float, typer.Option(callback=_probability, help="The p-value to be reached.")] = 1e-6,
    chance: Annotated[float, typer.Option(callback=_probability, help="Chance of reaching it: the power.")] = 0.8,
    keys_tested: Annotated[int, typer.Option("--keys", min=1, help="Keys that the level is split over.")] = 1,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Say also what so many tokens give, and the smallest dose they find.")
    ] = None,
    domain: Annotated[str, typer.Option(help="Without a pilot: prose or code.")] = "prose",
    gini: Annotated[
        float | None, typer.Option(help="Without a pilot: mean of 1 - sum p^2, in place of the domain's.")
    ] = None,
    quality: Annotated[
        str, typer.Option("--reference-quality", help="Without a pilot: base, the suspect's own, or poor.")
    ] = "base",
    eprocess_factor: Annotated[
        float, typer.Option(min=1, help="Tokens that the e-process needs for one of the fixed-size test.")
    ] = 1.5,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Draw tokens against dose, and power against tokens (extra report)."),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", "-t", metavar="NAME_OR_FILE", help="Of the pilot; as for detect text.")
    ] = "smollm2",
    reference: ReferenceOption = None,
    reference_model: ReferenceModelOption = None,
    prompts: PromptsOption = Prompts.own,
    max_malformed: MaxMalformedOption = 0,
    retokenize: RetokenizeOption = False,
    prompt_field: PromptFieldOption = "prompt",
    response_field: ResponseFieldOption = "response",
    text_field: TextFieldOption = "text",
    messages_field: MessagesFieldOption = "messages",
    ids_field: IdsFieldOption = "token_ids",
    json: JsonOption = False,
) -> None:
    """Say how many tokens of a suspect an audit needs. A plan from theory: no key, and no test."""
    from detect.power import PowerPlan, plan
    from detect.power_presets import absorption_of, preset_figures
    from detect.terminal import show
    from watermark.errors import UsageError

    if plot is not None:
        from detect.svg_file import check_svg

        check_svg(plot)
    if pilot:
        from detect.pilot import pilot as measure
        from detect.records import Fields
        from detect.reference_choice import ReferenceChoice
        from detect.tally import PromptPolicy, tally_of

        chosen = _tokenizer(tokenizer)
        fields = Fields(
            prompt=prompt_field, response=response_field, text=text_field, messages=messages_field, token_ids=ids_field
        )
        corpus = _corpus(
            pilot,
            chosen,
            window,
            retokenize=retokenize,
            max_malformed=max_malformed,
            fields=fields,
            every_prompt=prompts is Prompts.marked,
        )
        choice = ReferenceChoice(files=tuple(reference or ()), models=tuple(reference_model or ()))
        reference_used = _reference(choice, corpus, chosen, window, fields, fingerprints=frozenset())
        if reference_used is None:
            raise UsageError("a pilot wants the reference of the test: --reference or --reference-model")
        tally = tally_of(
            corpus.responses,
            window=window,
            special_ids=chosen.special_ids,
            prompts=corpus.prompts,
            echoes=corpus.echoes,
            policy=PromptPolicy(prompts.value),
            reference=None if reference_used is None else reference_used.reference,
        )
        figures = measure(tally, reference_used.reference, gamma_256=fleet_k)
    else:
        if reference or reference_model:
            raise UsageError("--reference is read with a pilot: name the suspect's outputs too")
        figures = preset_figures(domain, window=window, reference=quality, gini=gini)
    if tau is None and dose is not None and absorption is None:
        absorption = absorption_of(student, window).share
    asked = PowerPlan(
        figures=figures,
        delta=delta,
        tau=tau,
        dose=dose,
        absorption=absorption,
        gamma_256=fleet_k,
        fleet_share=(64 - account_lanes) / 64,
        level=level,
        keys=keys_tested,
        power=chance,
        eprocess_factor=eprocess_factor,
    )
    result = plan(asked, tokens=tokens)
    if plot is not None:
        from detect.power_plot import write_power_plot

        typer.echo(f"plot: {write_power_plot(asked, plot)}", err=True)
    if json:
        from detect.power_table import power_json

        _print_json(power_json(result))
    else:
        from detect.power_table import power_table

        show(power_table(result))


@study.command("run")
def study_run(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="tiny, small, arms, real, or a TOML file like theirs.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where everything is kept. [default: study-NAME]")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [default: as the study says]")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Only make the tests again, of students that are trained already.")
    ] = False,
) -> None:
    """Train a study's students and test what they say; a study that was stopped goes on where it was."""
    from detect.study.config import load_config, with_workers
    from detect.study.run import measure_again, run_study
    from detect.terminal import task_progress

    chosen = with_workers(load_config(config), workers)
    folder = out or Path(f"study-{chosen.name}")
    with task_progress() as shown:
        (measure_again if measure else run_study)(chosen, folder, progress=shown)
    typer.echo(f"{folder}: results.jsonl; its tables: taggant study table {folder}", err=True)


@study.command("table")
def study_table(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Of a study that was run, wholly or in part.")],
    format: Annotated[TableFormat, typer.Option(help="How the tables are printed.")] = TableFormat.text,
    reference: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the plots: base, twin or teacher. [default: the first]")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.svg",
            help="Draw evidence against tokens, z against dose, and the null controls (extra report).",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print a study's tables: z and p by dose and test, evidence against tokens, and the null controls."""
    from detect.study.table import load_results, study_tables

    measured = load_results(folder)
    tables = study_tables(measured)
    if plot is not None:
        from detect.svg_file import check_svg

        check_svg(plot)
    if json:
        from detect.result_json import study_json

        _print_json(study_json(tables))
    else:
        typer.echo("\n".join(getattr(table, format.value)() for table in tables), nl=False)
    if plot is not None:
        from detect.study.plots import write_study_plots

        typer.echo(f"plot: {write_study_plots(measured, plot, reference=reference)}", err=True)


@ledger.command("create-key")
def ledger_create_key(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The private key's file to create.")],
    name: Annotated[str, typer.Option(metavar="ORIGIN", help="The log's origin, e.g. host-a.example/ledger.")],
) -> None:
    """Create the key that signs a log's heads, readable by you alone, and print the one that verifies them."""
    from watermark.signed_note import create_note_key

    typer.echo(create_note_key(out, name=name).verifier())


@ledger.command("append")
def ledger_append(
    input: Annotated[str, typer.Argument(metavar="INPUT", help="JSON Lines of records; - for standard input.")],
    origin: Annotated[str, typer.Option(metavar="NAME", help="Of the log, made if it is not there.")],
    db: DatabaseOption = None,
    retention: Annotated[
        Retention, typer.Option(help="What is kept of prompts and responses beside their digests.")
    ] = Retention.ids,
    max_malformed: MaxMalformedOption = 0,
    json: JsonOption = False,
) -> None:
    """Append responses that an engine without our middleware served. Malformed lines are passed over and counted."""
    from watermark.ledger.lines import append_file
    from watermark.ledger.schema import chosen_url

    done = append_file(chosen_url(db), input, origin=origin, retention=retention.value)
    if json:
        _print_json(done.to_json())
    else:
        typer.echo(f"{done.read:,} lines read: {done.appended:,} appended, {done.malformed:,} malformed")
    for problem in done.problems:
        typer.echo(f"malformed: {problem}", err=True)
    if done.malformed > max_malformed:
        raise typer.Exit(3)


@ledger.command("checkpoint")
def ledger_checkpoint(
    key: Annotated[Path, typer.Option(metavar="FILE", help="The log's private key (taggant ledger create-key).")],
    db: DatabaseOption = None,
    origin: OriginOption = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it here and not to standard output.")] = None,
) -> None:
    """Sign a log's head: publish what it prints, and nothing below that size can be changed unseen."""
    from watermark.ledger.reader import LedgerReader
    from watermark.ledger.schema import chosen_url
    from watermark.signed_note import NoteSigner

    with LedgerReader.open(chosen_url(db)) as reader:
        note = reader.sign(NoteSigner.load(key), origin=origin)
    _write_text(note, out, what="the checkpoint")


@ledger.command("prove")
def ledger_prove(
    id: Annotated[str, typer.Argument(metavar="ID", help="Of the response.")],
    db: DatabaseOption = None,
    origin: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the log, where several have a response of this id.")
    ] = None,
    index: Annotated[int | None, typer.Option(min=0, help="Of the leaf, where several responses have this id.")] = None,
    key: NoteKeyOption = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it here and not to standard output.")] = None,
    json: JsonOption = False,
) -> None:
    """Prove that a response is in the log: a C2SP tlog-proof with its leaf, under the latest checkpoint."""
    from watermark.checkpoint import Checkpoint
    from watermark.ledger.reader import LedgerReader
    from watermark.ledger.schema import chosen_url
    from watermark.signed_note import NoteSigner

    with LedgerReader.open(chosen_url(db)) as reader:
        signer = None if key is None else NoteSigner.load(key)
        proof = reader.prove(id, origin=origin, index=index, signer=signer)
    if json:
        checkpoint = Checkpoint.parse_unverified(proof.note)
        _print_json({"schema": "taggant/ledger-prove/1", "proof": proof.text(), **proof.to_json(checkpoint)})
    if not json or out is not None:
        _write_text(proof.text(), out, what="the proof")


@ledger.command("verify")
def ledger_verify(
    db: DatabaseOption = None,
    origin: Annotated[str | None, typer.Option(metavar="NAME", help="Of one log. [default: all]")] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A checkpoint that was published; may be given several times."),
    ] = None,
    proof: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check this proof, offline, and no ledger.")
    ] = None,
    verifier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY_OR_FILE", help="A log's verifier key, for checkpoints and proofs; may be given several times."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check every entry against its leaf, the leaves against the tree, and the tree against what was signed."""
    from watermark.checkpoint import LogProof
    from watermark.signed_note import NoteVerifier

    verifiers = [NoteVerifier.load(given) for given in verifier or []]
    if proof is not None:
        read = LogProof.parse(_read_text(proof))
        _print_json({"schema": "taggant/ledger-proof/1", **read.to_json(read.verify(verifiers))})
        return
    from watermark.ledger.reader import LedgerReader
    from watermark.ledger.schema import chosen_url
    from watermark.ledger.verify import verify_ledger

    published = [_read_text(path) for path in checkpoint or []]
    with LedgerReader.open(chosen_url(db)) as reader:
        logs = verify_ledger(reader, origin=origin, published=published, verifiers=verifiers)
    if json:
        _print_json({"schema": "taggant/ledger-verify/1", "logs": [log.to_json() for log in logs]})
        return
    for log in logs:
        typer.echo(log.sentence())
        for gap in log.gaps:
            typer.echo(gap.sentence())


@ledger.command("export")
def ledger_export(
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .parquet (needs pyarrow) or .jsonl file.")],
    db: DatabaseOption = None,
    origin: Annotated[str | None, typer.Option(metavar="NAME", help="Of one log. [default: all]")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Responses that started then or later: a date, or RFC 3339.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Responses that started before.")] = None,
    account: Annotated[str | None, typer.Option(metavar="ID", help="To this account.")] = None,
    scope: Annotated[str | None, typer.Option(metavar="NAME", help="Under this scope.")] = None,
    marked: Annotated[
        bool | None, typer.Option("--marked/--unmarked", help="Only marked responses, or only others.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write responses in the order of their start, for `detect text`, and with --marked for `detect model --served`."""
    from watermark.ledger.export import Filter, export_ledger, instant
    from watermark.ledger.reader import LedgerReader
    from watermark.ledger.schema import chosen_url

    chosen = Filter(
        origin=origin,
        since=None if since is None else instant(since),
        until=None if until is None else instant(until),
        account=account,
        scope=scope,
        marked=marked,
    )
    with LedgerReader.open(chosen_url(db)) as reader:
        summary = export_ledger(reader, out, chosen=chosen)
    if json:
        _print_json(summary.to_json())
        return
    typer.echo(f"{out}: {summary.responses:,} responses", err=True)
    for gap in summary.gaps:
        typer.echo(gap.sentence(), err=True)
    for name, seen in summary.open_sessions:
        typer.echo(f"{name}: a writer has it open, or crashed with it open; last seen {seen}", err=True)


@app.command("collect")
def collect_command(
    endpoint: Annotated[str, typer.Argument(metavar="URL", help="Base address, such as https://host/v1.")],
    model: Annotated[str, typer.Option(help="The model, as the endpoint names it.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The journal (JSON Lines); one that is there is gone on with.")
    ],
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help='JSON Lines with a "prompt", or text with one prompt a line.')
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A study's folder: its prompts.jsonl (taggant evidence plan).")
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="Prompts made from templates: prose, code or tool-use; wants --count.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts made with --domain.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="From which they are drawn.")] = 0,
    samples: Annotated[int, typer.Option(min=1, max=1000, help="Answers to each prompt.")] = 1,
    completions: Annotated[
        bool, typer.Option("--completions", help="Ask /completions with the bare prompt, not /chat/completions.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 1.0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer.")] = 256,
    logprobs: Annotated[
        int | None, typer.Option(min=1, max=20, help="Ask for the log-probabilities of so many tokens, and keep them.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The environment variable that holds the API key.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file that holds the API key, readable by you alone.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at once.")] = 4,
    per_minute: Annotated[float | None, typer.Option(min=0.01, help="Requests begun a minute at most.")] = None,
    retries: Annotated[int, typer.Option(min=0, max=20, help="Further tries of a request that failed.")] = 6,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one try, to its last byte.")] = 120.0,
    budget_tokens: Annotated[int | None, typer.Option(min=1, help="Prompt and answer tokens at most.")] = None,
    budget_money: Annotated[float | None, typer.Option(min=0, help="To be spent at most, by the prices.")] = None,
    price_in: Annotated[float, typer.Option(min=0, help="Of a million prompt tokens.")] = 0.0,
    price_out: Annotated[float, typer.Option(min=0, help="Of a million answer tokens.")] = 0.0,
    until: Annotated[
        float | None, typer.Option(help="Look at the evidence meanwhile, and stop at this p; wants --keyring.")
    ] = None,
    keyring: Annotated[Path | None, typer.Option("--keyring", "-k", metavar="FILE", help="Key file.")] = None,
    scope: Annotated[str | None, typer.Option(metavar="NAME", help="Scope in the key file.")] = None,
    looks: Annotated[int, typer.Option(min=1, help="Looks at equal steps of the planned text.")] = 16,
    planned_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Size of the text that the looks are planned for. [default: requests x max tokens]"),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="FILE", help="Records of a clean model's outputs, for the weights.")
    ] = None,
    reference_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A model that reads the answers, for the weights.")
    ] = None,
    tokenizer: TokenizerOption = None,
    json: JsonOption = False,
) -> None:
    """Sample a suspect behind an OpenAI-compatible endpoint; every answer is kept (extra collect)."""
    from detect.collection.command import Asked, Watched, run_collection
    from detect.records import Fields
    from detect.reference_reader import GrowingReference
    from watermark.errors import ReferenceMismatchError, UsageError, printable

    watched = None
    if until is not None:
        marks = _marks([keyring] if keyring else None, [scope] if scope else None, None)
        if len(marks) != 1:
            raise UsageError(f"--until looks with one key, and {len(marks)} were given: --keyring and --scope name it")
        key = marks[0][0]
        chosen = _tokenizer_of(tokenizer, [key])
        reader = _reference_reader(chosen, key.window, Fields(), reference, reference_model)
        if reader is not None and key.fingerprint in reader.fingerprints:
            raise ReferenceMismatchError(
                f"reference {printable(reference)}: its records say that they were marked under the parameters tested. "
                "A reference must know nothing of the key: take outputs of a model that never saw the mark"
            )
        watched = Watched(
            mark=key,
            tokenizer=chosen,
            level=until,
            looks=looks,
            planned_tokens=planned_tokens,
            reference_of=None if reader is None else GrowingReference(reader, chosen),
        )
    elif keyring or reference or reference_model:
        raise UsageError("--keyring, --reference and --reference-model go with --until P; without it nothing is tested")
    outcome = run_collection(
        Asked(
            url=endpoint,
            model=model,
            completions=completions,
            sampling={"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens},
            logprobs=logprobs,
            api_key_env=api_key_env,
            api_key_file=api_key_file,
            prompts=prompts,
            plan=plan,
            domain=domain,
            count=count,
            seed=seed,
            samples=samples,
            concurrency=concurrency,
            per_minute=per_minute,
            retries=retries,
            timeout=timeout,
            budget_tokens=budget_tokens,
            budget_money=budget_money,
            price_in=price_in,
            price_out=price_out,
        ),
        out,
        watched=watched,
    )
    if json:
        _print_json(outcome.to_json())
    else:
        for line in outcome.lines():
            typer.echo(line)
    raise typer.Exit(outcome.exit_code)


@evidence.command("plan")
def evidence_plan(
    work: WorkOption,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The plan, in TOML; --template prints one to fill in.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help='JSON Lines with a "prompt", or text with one prompt a line.')
    ] = None,
    keyring: Annotated[Path | None, typer.Option("--keyring", "-k", metavar="FILE", help="Key file.")] = None,
    scope: Annotated[str | None, typer.Option(metavar="NAME", help="Scope in the key file.")] = None,
    log: OptionalLogOption = None,
    key: OptionalPublisherKeyOption = None,
    template: Annotated[bool, typer.Option("--template", help="Print a plan to fill in, and do nothing else.")] = False,
) -> None:
    """Fix and sign what will be collected and tested, before anything is collected."""
    from detect.evidence.plan_file import TEMPLATE, read_plan_file

    if template:
        typer.echo(TEMPLATE, nl=False)
        return
    from detect.evidence.study import Study
    from watermark.commitment_log import CommitmentLog
    from watermark.errors import UsageError
    from watermark.generation import read_prompts
    from watermark.keyring import Keyring
    from watermark.signed_note import NoteSigner

    if config is None or prompts is None or keyring is None or log is None or key is None:
        raise UsageError("give --config, --prompts, --keyring, --log and --key (--template prints a plan to fill in)")
    keys_of = Keyring.load(keyring).scope(scope)
    study = Study(work, CommitmentLog(log))
    _, digest = study.plan(read_plan_file(config), read_prompts(prompts), keys=keys_of, signer=NoteSigner.load(key))
    typer.echo(f"{work}/plan.dsse.json: signed, {digest}, and in the log")
    typer.echo(
        f"Publish {log}. Then ask the prompts of {work}/prompts.jsonl, and: taggant evidence score --work {work}"
    )


@evidence.command("score")
def evidence_score(
    work: WorkOption,
    outputs: Annotated[Path, typer.Option(metavar="FILE", help="JSON Lines of every response, as collected.")],
    keyring: KeyFileOption,
    log: LogOption,
    key: PublisherKeyOption,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Reference probabilities of the outputs (.npz).")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE[,FILE.npz]", help="A control's texts and reference; once for each control."),
    ] = None,
    deviation: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Where and why the plan was departed from.")
    ] = None,
    tokenizer: TokenizerOption = None,
) -> None:
    """Score every lane of the outputs, and sign the integers, before anybody knows which lanes will be opened."""
    from detect.evidence.study import Study, control_files
    from detect.mark import GreenListMark
    from detect.terminal import busy
    from watermark.commitment_log import CommitmentLog
    from watermark.keyring import Keyring
    from watermark.signed_note import NoteSigner

    study, signer = Study(work, CommitmentLog(log)), NoteSigner.load(key)
    plan, _ = study.signed("plan", signer.verifier())
    keys_of = Keyring.load(keyring).scope(plan.scope)
    chosen = _tokenizer_of(tokenizer, [GreenListMark(keys_of)])
    with busy("scoring every lane"):
        scores = study.score(
            outputs,
            keys=keys_of,
            tokenizer=chosen,
            signer=signer,
            reference=reference,
            controls=control_files(control or []),
            deviations=tuple(deviation or ()),
        )
    said = scores.outputs
    typer.echo(
        f"{work}/scores.dsse.json: {said.read:,} records read = {said.scored:,} scored + "
        f"{sum(said.excluded.values()):,} excluded + {said.malformed:,} malformed; {said.positions:,} positions"
    )
    choice = plan.lane_choice
    typer.echo(f"Publish {log}. Then take the {choice.kind} of {choice.name}: taggant evidence open --value TEXT")


@evidence.command("open")
def evidence_open(
    work: WorkOption,
    keyring: KeyFileOption,
    log: LogOption,
    key: PublisherKeyOption,
    value: Annotated[str, typer.Option(metavar="TEXT", help="The randomness, drawn after the scores were published.")],
) -> None:
    """Open the lanes that the randomness chooses: their seeds are signed, and they mark nothing more."""
    from detect.evidence.study import Study
    from watermark.commitment_log import CommitmentLog
    from watermark.signed_note import NoteSigner

    opening = Study(work, CommitmentLog(log)).open(keyring, signer=NoteSigner.load(key), value=value)
    typer.echo(f"{work}/opening.dsse.json: lanes {', '.join(map(str, opening.lanes))}; revealed in {keyring} and {log}")
    typer.echo(f"Then: taggant evidence create --work {work} --out BUNDLE")


@evidence.command("create")
def evidence_create(
    work: WorkOption,
    out: Annotated[Path, typer.Option(metavar="PATH", help="The bundle: a folder, or a file that ends in .tar.")],
    keyring: KeyFileOption,
    log: LogOption,
    key: PublisherKeyOption,
    tokenizer: TokenizerOption = None,
) -> None:
    """Make the claim from the opened lanes alone, and write the bundle."""
    from detect.evidence.study import Study
    from detect.mark import GreenListMark
    from detect.terminal import busy
    from watermark.commitment_log import CommitmentLog
    from watermark.keyring import Keyring
    from watermark.signed_note import NoteSigner

    study, signer = Study(work, CommitmentLog(log)), NoteSigner.load(key)
    ring = Keyring.load(keyring)
    plan, _ = study.signed("plan", signer.verifier())
    chosen = _tokenizer_of(tokenizer, [GreenListMark(ring.scope(plan.scope))])
    with busy("testing the opened lanes"):
        claim = study.create(out, tokenizer=chosen, signer=signer, published=ring.published)
    for sentence in claim.statement:
        typer.echo(sentence)
    typer.echo(f"\n{out}: taggant evidence verify {out} --publisher '{signer.verifier()}'")


@evidence.command("verify")
def evidence_verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder, or an uncompressed tar.")],
    publisher: PublisherOption,
    tokenizer: TokenizerOption = None,
    decoys: Annotated[int, typer.Option(min=1, max=10_000, help="Decoy keys.")] = 200,
    tsa_root: TsaRootOption = None,
    statement: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what was found as a signed statement; wants --key.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="The verifier's own private key.")] = None,
    json: JsonOption = False,
) -> None:
    """Recompute a claim from its bundle, offline. Exit 0: no check failed; 5: one did; 6: one could not be made."""
    from detect.evidence.statement import write_verification
    from detect.evidence.tables import verification_json, verification_table
    from detect.evidence.verify import open_and_verify
    from detect.terminal import busy, show

    with busy("recomputing the claim"):
        verification = open_and_verify(bundle, publisher, tokenizer=tokenizer, decoys=decoys, tsa_root=tsa_root)
    if statement is not None:
        write_verification(statement, verification, key=key)
    if json:
        _print_json(verification_json(verification))
    else:
        show(verification_table(verification))
    raise typer.Exit(verification.exit_code)


@evidence.command("report")
def evidence_report(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder, or an uncompressed tar.")],
    publisher: PublisherOption,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Gets report.html and claim-card.md.")],
    tokenizer: TokenizerOption = None,
    decoys: Annotated[int, typer.Option(min=1, max=10_000, help="Decoy keys.")] = 999,
    tsa_root: TsaRootOption = None,
) -> None:
    """Recompute a claim as `verify` does, and write it as one HTML page and a claim card (extra report)."""
    from detect.evidence.report import verdict_line, write_evidence_report
    from detect.evidence.verify import open_and_verify
    from detect.html_page import check_libraries
    from detect.terminal import busy
    from watermark.signed_note import NoteVerifier

    check_libraries()
    with busy("recomputing the claim"):
        verification = open_and_verify(bundle, publisher, tokenizer=tokenizer, decoys=decoys, tsa_root=tsa_root)
        command = f"taggant evidence verify {bundle.name} --publisher '{NoteVerifier.load(publisher)}'"
        page, card = write_evidence_report(verification, out, command=command)
    typer.echo(f"{verdict_line(verification)}\n{page}\n{card}")
    raise typer.Exit(verification.exit_code)


WorkersOption = Annotated[
    int, typer.Option(min=0, max=1024, help="Processes; 0: one a core that this process may use.")
]
KeepDuplicatesOption = Annotated[
    bool, typer.Option("--keep-duplicates", help="Count identical records as often as they are there.")
]
NearDuplicatesOption = Annotated[
    float | None,
    typer.Option(
        min=0.5,
        max=1.0,
        metavar="SIMILARITY",
        help="Leave out documents as similar as this to another (0.5 to 1: Jaccard of 5-id runs); reads twice.",
    ),
]
TallyPrompts = Annotated[
    Prompts,
    typer.Option(help="Windows left out for standing in a prompt: those of the record's own, or none (clean)."),
]


@tally.command("build")
def tally_build(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The tally to write; an interrupted run is gone on with.")],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", "-t", metavar="NAME_OR_FILE", help="The generating model's.")
    ] = "smollm2",
    window: Annotated[int, typer.Option(min=1, max=8, help="Ids hashed for each choice, as the scope has it.")] = 2,
    special: Annotated[
        list[str] | None,
        typer.Option(metavar="ID_OR_TOKEN", help="A further special id of the scope that the tokenizer does not flag."),
    ] = None,
    capacity: Annotated[
        int, typer.Option(min=1, max=2**31 - 1, help="Distinct pairs kept at most; beyond it windows are sampled.")
    ] = 2**24,
    prompts: TallyPrompts = Prompts.own,
    keep_duplicates: KeepDuplicatesOption = False,
    near_duplicates: NearDuplicatesOption = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Clean text, of which an n-gram model's mass is tallied too: for the weighted tests."
        ),
    ] = None,
    reference_model: Annotated[
        str | None,
        typer.Option(metavar="NAME_OR_FOLDER", help="A model that reads each text, for the same (extra hf)."),
    ] = None,
    workers: WorkersOption = 0,
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="Time between checkpoints at least.")] = 60.0,
    daft: Annotated[bool, typer.Option("--daft", help="Let Daft's engine schedule the files (extra daft).")] = False,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Let Daft schedule them on this Ray cluster (extra ray).")
    ] = None,
    max_malformed: MaxMalformedOption = 0,
    retokenize: RetokenizeOption = False,
    prompt_field: PromptFieldOption = "prompt",
    response_field: ResponseFieldOption = "response",
    text_field: TextFieldOption = "text",
    messages_field: MessagesFieldOption = "messages",
    ids_field: IdsFieldOption = "token_ids",
    json: JsonOption = False,
) -> None:
    """Tally the distinct pairs of any amount of text. No key is needed, and none is in the file (extra corpora)."""
    from dataclasses import replace

    from detect.portions import Sifter
    from detect.records import Fields
    from detect.tally import PromptPolicy
    from detect.tally_build import PORTION, Build, build_tally
    from detect.terminal import reading

    chosen = _tokenizer(tokenizer)
    special_ids = {*chosen.special_ids, *(chosen.special_id(name) for name in special or [])}
    sifter = Sifter(
        chosen,
        window=window,
        special_ids=tuple(sorted(special_ids)),
        policy=PromptPolicy(prompts.value),
        fields=Fields(
            prompt=prompt_field, response=response_field, text=text_field, messages=messages_field, token_ids=ids_field
        ),
        retokenize=retokenize,
    )
    reader = _reference_reader(chosen, window, sifter.fields, reference, reference_model)
    build = Build(
        capacity=capacity,
        keep_duplicates=keep_duplicates,
        # A model uses all cores by itself, and takes long for what a worker is given otherwise.
        workers=_workers(workers, inputs) if reference_model is None else 1,
        portion=PORTION if reference_model is None else PORTION // 64,
        every=checkpoint_seconds,
        reference=reader,
    )
    if daft or ray is not None:
        from detect.daft_plan import build_tally_on_daft

        built = build_tally_on_daft(
            inputs,
            sifter,
            out=out,
            build=build,
            near_duplicates=near_duplicates,
            max_malformed=max_malformed,
            ray=ray,
        )
        _show_tally(built, json=json)
        return
    build = replace(build, near=_near(inputs, sifter, near_duplicates, out, build, max_malformed))
    with reading(_bytes_of(inputs)) as progress:
        built = build_tally(
            inputs, sifter, out=out, build=build, max_malformed=max_malformed, progress=progress, resumed=_resumed
        )
    _show_tally(built, json=json)


def _reference_reader(
    tokenizer: Tokenizer, window: int, fields: Fields, reference: str | None, model: str | None
) -> ReferenceReader | None:
    """Return what reads texts that come piece by piece."""
    from detect.corpus import read_corpus
    from detect.records import Reader
    from detect.reference_reader import ModelReader, NgramReader
    from watermark.errors import UsageError

    if reference is not None and model is not None:
        raise UsageError("there is one reference here: give --reference or --reference-model")
    if model is not None:
        return ModelReader(model, tokenizer)
    if reference is None:
        return None
    if reference.endswith(".npz"):
        raise UsageError(
            "--reference: the probabilities in an .npz are of one file's texts in their order, which is not known "
            "here: give clean text, or --reference-model"
        )
    clean = read_corpus(Reader([reference], fields=fields), tokenizer, window=window)
    return NgramReader(
        clean=tuple(clean.responses),
        tokenizer=tokenizer,
        window=window,
        source=reference,
        marked_under=clean.fingerprints,
    )


@tally.command("merge")
def tally_merge(
    tallies: Annotated[list[Path], typer.Argument(metavar="TALLY", help="What tally build wrote.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The tally to write.")],
    json: JsonOption = False,
) -> None:
    """Add tallies up, as if one build had read all that they are of (extra corpora)."""
    from detect.tally_file import merge_tallies, write_tally
    from detect.terminal import busy

    with busy("adding up"):
        merged = merge_tallies(tallies)
        write_tally(out, merged)
    _show_tally(merged, json=json)


@tally.command("score")
def tally_score(
    path: Annotated[Path, typer.Argument(metavar="TALLY", help="What tally build or tally merge wrote.")],
    keyring: KeyringOption = None,
    scope: ScopeOption = None,
    mark: MarkOption = None,
    decoys: Annotated[int, typer.Option(min=0, help="Decoy keys.")] = 99,
    level: LevelOption = 1e-6,
    exit_code: ExitCodeOption = None,
    json: JsonOption = False,
) -> None:
    """Test whether the texts of a tally depend on a key, as detect model would (extra corpora)."""
    from detect.corpus_tables import score_json, score_tables, warnings_of_tally
    from detect.tally_file import read_tally
    from detect.tally_score import score_tally
    from detect.terminal import busy, show
    from detect.verdict import Verdict
    from watermark.errors import UsageError, printable

    marks = _marks(keyring, scope, mark)
    with busy("scoring"):
        read, beside = read_tally(path)
        if beside is not None:
            raise UsageError(f"{printable(path)} is the checkpoint of a build that is not done: finish it first")
        results = score_tally(read, [key for key, _ in marks], decoys=decoys, level=level)
    warned = [
        warnings_of_tally(read.about, fingerprint=key.fingerprint, activated=key.activated, published=published)
        for key, published in marks
    ]
    if json:
        _print_json(score_json(results, read, warned))
    else:
        show(score_tables(results, read, warned))
    if exit_code is not None and any(result.verdict is Verdict.DEPENDS for result in results):
        raise typer.Exit(exit_code)


@detect.command("corpus")
def detect_corpus(
    inputs: Inputs,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="A row a document, .parquet, .jsonl or .csv; an interrupted run is gone on with."
        ),
    ],
    keyring: KeyringOption = None,
    scope: ScopeOption = None,
    mark: MarkOption = None,
    tokenizer: TokenizerOption = None,
    prompts: TallyPrompts = Prompts.own,
    level: Annotated[
        float, typer.Option(callback=_probability, help="Share of the findings that may be false, as expected.")
    ] = 0.01,
    keep_duplicates: KeepDuplicatesOption = False,
    near_duplicates: NearDuplicatesOption = None,
    workers: WorkersOption = 0,
    max_malformed: MaxMalformedOption = 0,
    retokenize: RetokenizeOption = False,
    prompt_field: PromptFieldOption = "prompt",
    response_field: ResponseFieldOption = "response",
    text_field: TextFieldOption = "text",
    messages_field: MessagesFieldOption = "messages",
    ids_field: IdsFieldOption = "token_ids",
    json: JsonOption = False,
) -> None:
    """Tell which of millions of documents are marked, by Benjamini and Hochberg (extra corpora)."""
    from detect.corpus_scan import PORTION, scan_corpus
    from detect.corpus_tables import scan_json, scan_tables, warnings_of_tally
    from detect.portions import Sifter
    from detect.records import Fields
    from detect.tally import PromptPolicy
    from detect.tally_build import Build
    from detect.terminal import reading, show
    from watermark.errors import UsageError

    marks = _marks(keyring, scope, mark)
    if len(marks) != 1:
        raise UsageError(f"detect corpus tests one key, and {len(marks)} were given: name the scope with --scope")
    key, published = marks[0]
    sifter = Sifter(
        _tokenizer_of(tokenizer, [key]),
        window=key.window,
        special_ids=key.special_ids,
        policy=PromptPolicy(prompts.value),
        fields=Fields(
            prompt=prompt_field, response=response_field, text=text_field, messages=messages_field, token_ids=ids_field
        ),
        retokenize=retokenize,
    )
    processes = _workers(workers, inputs)
    scanned = Build(keep_duplicates=keep_duplicates, workers=processes, portion=PORTION)
    near = _near(inputs, sifter, near_duplicates, out, scanned, max_malformed)
    with reading(_bytes_of(inputs)) as progress:
        scan = scan_corpus(
            inputs,
            sifter,
            key,
            out=out,
            level=level,
            keep_duplicates=keep_duplicates,
            near=near,
            workers=processes,
            load=_loading(keyring, mark, key.name),
            max_malformed=max_malformed,
            progress=progress,
            resumed=_resumed,
        )
    warned = warnings_of_tally(scan, fingerprint=key.fingerprint, activated=key.activated, published=published)
    if json:
        _print_json(scan_json(scan, warned, out=str(out)))
    else:
        show(scan_tables(scan, warned))


def _near(
    inputs: list[str],
    sifter: Sifter,
    similarity: float | None,
    out: Path,
    build: Build,
    max_malformed: int,
) -> NearDuplicates | None:
    """Look for near-duplicates in a pass of its own, if that is wanted."""
    from detect.near_search import find_near_duplicates
    from detect.terminal import reading
    from watermark.errors import UsageError

    if similarity is None:
        return None
    if build.keep_duplicates:
        raise UsageError("--near-duplicates leaves identical records out too: not with --keep-duplicates")
    with reading(_bytes_of(inputs), "near-duplicates: ") as progress:
        return find_near_duplicates(
            inputs,
            sifter,
            threshold=similarity,
            out=out,
            workers=build.workers,
            portion=build.portion,
            every=build.every,
            max_malformed=max_malformed,
            progress=progress,
            resumed=_resumed,
        )


def _loading(keyrings: list[Path] | None, others: list[str] | None, name: str) -> Callable[[], Mark]:
    """Return what loads the one key given, in another process."""
    from functools import partial

    from detect.corpus_scan import load_scope
    from watermark.keyring import Keyring

    for path in keyrings or []:
        if any(scope.name == name for scope in Keyring.load(path).scopes):
            return partial(load_scope, path, name)
    from detect.marks.mark_file import load_mark

    return partial(load_mark, (others or [""])[0])


def _show_tally(built: TallyFile, *, json: bool) -> None:
    from detect.corpus_tables import tally_json, tally_table
    from detect.terminal import show

    if json:
        _print_json(tally_json(built))
    else:
        show(tally_table(built))


def _resumed(records: int) -> None:
    typer.echo(f"going on after {records:,} records that an earlier run did", err=True)


def _bytes_of(inputs: list[str]) -> int | None:
    from detect.records import Reader

    return Reader(inputs).bytes_total


def _workers(asked: int, inputs: list[str]) -> int:
    """Return the processes to use: one where starting others takes longer than the work."""
    if asked:
        return asked
    size = _bytes_of(inputs)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if size is not None and size < 32 * 2**20 else cores


def _marks(keyrings: list[Path] | None, names: list[str] | None, others: list[str] | None) -> list[tuple[Mark, bool]]:
    """Return the keys to test as marks, each with whether it is published."""
    from detect.mark import GreenListMark
    from watermark.errors import UsageError, printable
    from watermark.keyring import Keyring

    found: list[tuple[Mark, bool]] = []
    there: set[str] = set()
    for path in keyrings or []:
        keyring = Keyring.load(path)
        there |= {scope.name for scope in keyring.scopes}
        wanted = [scope.name for scope in keyring.scopes if names is None or scope.name in names]
        found.extend((GreenListMark(keyring.scope(name)), keyring.published) for name in wanted)
    missing = sorted(set(names or []) - there)
    if missing:
        raise UsageError(
            f"no scope {printable(', '.join(missing))} in the key files given: they have {', '.join(sorted(there))}"
        )
    if others:
        from detect.marks.mark_file import load_mark

        found.extend((load_mark(spec), False) for spec in others)
    if not found:
        raise UsageError("name the key: --keyring FILE, or --mark SCHEME:FILE for a mark made by another server")
    return found


def _reference(
    choice: ReferenceChoice,
    corpus: Corpus,
    tokenizer: Tokenizer,
    window: int,
    fields: Fields,
    *,
    fingerprints: frozenset[str],
) -> ChosenReference | None:
    """Make the reference, and show how far it is."""
    from detect.terminal import busy, progress

    return choice.make(
        corpus,
        tokenizer,
        window=window,
        fingerprints=fingerprints,
        read=lambda file: _corpus([file], tokenizer, window, fields=fields),
        loading=lambda name: busy(f"loading {name}"),
        reading=progress,
    )


def _weightings(names: list[str] | None) -> list[Weighting]:
    """Return the weighted tests of these names."""
    from detect.family import DEFAULT, FAMILY
    from watermark.errors import UsageError, printable

    if not names:
        return list(DEFAULT)
    unknown = [name for name in names if name not in FAMILY]
    if unknown:
        raise UsageError(f"--test: no test {printable(unknown[0])}: expected {', '.join(FAMILY)}")
    return [FAMILY[name] for name in names]


def _tokenizer(name: str) -> Tokenizer:
    from watermark.tokenizer import load

    return load(name)


def _tokenizer_of(name: str | None, marks: list[Mark]) -> Tokenizer:
    """Return the tokenizer, which must be the one that every key was made for."""
    from watermark.errors import UsageError
    from watermark.tokenizer import load_for

    named = [(key.name, key.tokenizer) for key in marks if key.tokenizer is not None]
    if not named and name is None:
        raise UsageError(f"{marks[0].name} does not say of which tokenizer its ids are: name it with --tokenizer")
    return load_for(named, spec=name)


def _corpus(
    inputs: list[str],
    tokenizer: Tokenizer,
    window: int,
    *,
    fields: Fields,
    retokenize: bool = False,
    max_malformed: int = 0,
    every_prompt: bool = False,
    passing: Callable[[Iterable[Document]], Iterable[Document]] | None = None,
) -> Corpus:
    """Read and tokenise, with a progress bar; the documents go through *passing*."""
    from detect.corpus import read_corpus
    from detect.records import Reader
    from detect.terminal import progress

    def shown(documents: Iterable[Document]) -> Iterator[Document]:
        with progress("records", None) as advance:
            for document in documents if passing is None else passing(documents):
                yield document
                advance(1)

    reader = Reader(inputs, fields=fields, max_malformed=max_malformed)
    return read_corpus(
        reader, tokenizer, window=window, retokenize=retokenize, every_prompt=every_prompt, progress=shown
    )


def _read_text(path: Path) -> str:
    from watermark.errors import InputError, printable

    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{printable(path)}: expected UTF-8") from None


def _write_text(text: str, out: Path | None, *, what: str) -> None:
    if out is None:
        typer.echo(text, nl=False)
        return
    from watermark.whole_file import write_whole

    typer.echo(f"{write_whole(out, text, what=what)}: {what}", err=True)


def _print_json(value: Any) -> None:
    from detect.result_json import dumps

    typer.echo(dumps(value))


def _fail(message: str, exit_code: int) -> NoReturn:
    """Leave with one line on standard error; *message* is `printable` already."""
    sys.stderr.write(f"taggant: {message}\n")
    raise SystemExit(exit_code) from None


def main() -> None:
    """Run the command; every error that is meant is one line on standard error and an exit code."""
    try:
        import detect as analysis
        import watermark as serving

        ours = {getattr(package, "TAGGANT", None) for package in (analysis, serving)} == {"taggant"}
    except ImportError:
        ours = False
    if not ours:
        _fail(
            "another package named 'watermark' or 'detect' lies over Taggant's (PyPI's `watermark` is one): install "
            "taggant in an environment of its own",
            2,
        )
    from watermark.errors import TaggantError, printable

    # The progress bars of libraries (transformers' GGUF reader for one) would write over ours, and the hub's client
    # tells of each try to reach a network that is not there.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal that cannot show a character is no reason to lose a result.
        sys.stdout.reconfigure(errors="backslashreplace")
    # What typer raises for a wrong option is a class of click's, or of its own copy of click in later versions.
    mistake: Any = typer.BadParameter.__bases__[0]
    try:
        code = app(prog_name="taggant", standalone_mode=False)
    except TaggantError as error:
        _fail(printable(error, 4000), error.exit_code)
    except mistake as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(f"{error.format_message()}\n")
            raise SystemExit(2) from None
        said = str(error.format_message()).rstrip(".")
        command = error.ctx.command_path if error.ctx else "taggant"
        _fail(f"{printable(said[:1].lower() + said[1:], 1000)} ({command} --help shows what it takes)", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except SystemExit as stop:
        # typer and rich leave with 1 when whoever read standard output has read enough.
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        _silence_stdout()
        code = 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            _internal(error)
        _silence_stdout()
        _fail(f"cannot write: {error.strerror}. Make room and run it again", 1)
    except Exception as error:
        _internal(error)
    if code == 130:
        _fail("interrupted", 130)
    raise SystemExit(code or 0)


def _silence_stdout() -> None:
    """Keep Python from writing what is left to a standard output that takes no more, and from complaining of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _internal(error: Exception) -> NoReturn:
    if os.environ.get("TAGGANT_DEBUG"):
        raise error
    # The message of an unexpected error may quote data; its type and place are enough for a report.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
    _fail(
        f"internal error: {type(error).__name__} at {place}. This is a bug: please report it (TAGGANT_DEBUG=1 shows "
        "the traceback, which may hold input text)",
        1,
    )


if __name__ == "__main__":
    main()
