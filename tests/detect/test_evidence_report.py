"""The report of a bundle: what it shows, that nothing in it runs or loads, how it lies on a telephone and on paper."""

from __future__ import annotations

import base64
import hashlib
import re
from itertools import pairwise
from pathlib import Path

import pytest
from browser import chromium
from evidence import Forgery, Made, make_study
from html_elements import LOADING, Page

from detect.evidence.report import verdict_line, write_evidence_report
from detect.evidence.verify import open_and_verify

HOSTILE = "<script>alert(1)</script> [click](http://evil.example) \u202e\x1b[31m | `x` **bold**"
COMMAND = "taggant evidence verify bundle --publisher 'provider.example/taggant+00000000+AAAA'"

#: Words that an accusation is better without (issue of evidence; `detect.evidence.words`).
FORBIDDEN = ("proof", "proven", "stolen", "theft")


def hostile(config: dict[str, object]) -> None:
    config["title"] = HOSTILE
    config["exclusions"] = [HOSTILE]
    config["sampling"] = {HOSTILE: HOSTILE}
    config["suspect"] = {"endpoint": "http://suspect.example/v1", "model": "suspect" + HOSTILE, "released": None}


def report(made: Made, out: Path) -> tuple[str, str]:
    found = open_and_verify(made.path, str(made.publisher), tokenizer=None, decoys=50, tsa_root=None)
    page, card = write_evidence_report(found, out, command=COMMAND)
    return page.read_text(encoding="utf-8"), card.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of an honest study, of one with hostile strings, and of a forged one."""
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("reports")

    def more(claim: dict[str, object]) -> None:
        claim["log10_p"] = "-500.00"

    forgeries = {
        "honest": Forgery(),
        "hostile": Forgery(config=hostile),
        "forged": Forgery(statements={"claim": more}),
    }
    for name, forgery in forgeries.items():
        report(make_study(folder / f"{name}-study", forgery=forgery, responses=20), folder / name)
    return folder


@pytest.mark.parametrize("name", ["honest", "hostile", "forged"])
def test_nothing_in_it_runs_or_loads(folder: Path, name: str) -> None:
    html = (folder / name / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert {tag for tag, _ in page.elements} & LOADING == {"style"}
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on") or a == "style"]
    assert not [value for _, attributes in page.elements for value in attributes.values() if "javascript:" in value]
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    style = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in style]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digests[0]}'")
    assert len(digests) == 1
    assert not {*"\u202e\x1b"} & {*html}


@pytest.mark.parametrize("name", ["honest", "hostile", "forged"])
def test_words_that_an_accusation_is_better_without(folder: Path, name: str) -> None:
    text = Page((folder / name / "report.html").read_text(encoding="utf-8")).text
    card = (folder / name / "claim-card.md").read_text(encoding="utf-8")
    for word in FORBIDDEN:
        assert word not in text.lower()
        assert word not in card.lower()


def test_it_says_what_was_found_and_what_is_not_shown(folder: Path) -> None:
    text = Page((folder / "honest" / "report.html").read_text(encoding="utf-8")).text
    assert "The outputs of suspect depend on the key." in text
    assert "It does not say who trained on what" in text
    assert "20 records read = 20 scored + 0 excluded + 0 malformed" in text
    assert "the log's times are the publisher's word" in text
    assert COMMAND in text
    assert text.count("E-") >= 31


def test_a_screen_reader_finds_headings_tables_and_pictures(folder: Path) -> None:
    page = Page((folder / "honest" / "report.html").read_text(encoding="utf-8"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert [a["lang"] for a in page.all("html")] == ["en"]
    assert len(page.all("svg")) == 3
    assert all(a["role"] == "img" and len(a["aria-label"]) > 40 for a in page.all("svg"))
    assert all("scope" in a for a in page.all("th"))


def test_a_forged_claim_shows_no_figures(folder: Path) -> None:
    text = Page((folder / "forged" / "report.html").read_text(encoding="utf-8")).text
    card = (folder / "forged" / "claim-card.md").read_text(encoding="utf-8")
    assert "not borne out by its bundle" in text
    assert "depends on the key" not in text.split("What was planned")[0]
    assert "E-CLAIM-01, fail" in card
    assert "at most" not in card.split("##")[0]


def test_what_a_bundle_says_is_no_markup_in_the_card(folder: Path) -> None:
    card = (folder / "hostile" / "claim-card.md").read_text(encoding="utf-8")
    assert "<script>" not in card.replace("\\<script\\>", "")
    assert not re.search(r"(?<!\\)\]\(", card)
    assert "http://evil" not in card


def test_a_bundle_that_cannot_be_read_gets_no_report(folder: Path, tmp_path: Path) -> None:
    from watermark.errors import UsageError

    found = open_and_verify(
        tmp_path, str(folder / "honest-study" / "publisher.pub"), tokenizer=None, decoys=1, tsa_root=None
    )
    assert "could not be checked" in verdict_line(found) or "not borne out" in verdict_line(found)
    with pytest.raises(UsageError, match="taggant evidence verify"):
        write_evidence_report(found, tmp_path / "out", command=COMMAND)


def test_it_is_legible_on_a_telephone_and_on_paper(folder: Path) -> None:
    with chromium() as browser:
        for name in ("honest", "hostile", "forged"):
            for width, scheme in ((360, "light"), (1100, "light"), (360, "dark")):
                context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
                page = context.new_page()
                said: list[str] = []
                page.on("console", lambda message, said=said: said.append(message.text))
                page.on("request", lambda request, said=said: said.append(request.url))
                address = (folder / name / "report.html").as_uri()
                page.goto(address)
                assert said == [address]
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
                sizes = page.evaluate(
                    "[...document.querySelectorAll('p,li,td,th,dd,dt')].filter(e => e.innerText.trim())"
                    ".map(e => parseFloat(getComputedStyle(e).fontSize))"
                )
                assert min(sizes) >= 12
                if width == 1100 and name == "honest":
                    pdf = page.pdf(format="A4")
                    assert pdf.startswith(b"%PDF")
                    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
                context.close()
