from __future__ import annotations

import base64
import hashlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from html_elements import LOADING, Page

from detect.corpus import Corpus
from detect.count import count_test
from detect.demo import Demo, GrowthPoint, Suspect
from detect.distillation import ModelResult
from detect.marked_text import DocumentResult, TextResult
from detect.records import Accounting
from detect.report import write_report
from detect.verdict import DOES_NOT_SAY, LEVEL, Verdict
from detect.warning import Warned
from detect.weighted_test import EffectSize, WeightedTest
from watermark import __version__
from watermark.errors import MissingExtraError, TaggantError, UsageError

MINUS = "\N{MINUS SIGN}"


def corpus(name: str, *, answers: int, tokens: int) -> Corpus:
    each = tokens // answers
    sizes = [each] * (answers - 1) + [tokens - each * (answers - 1)]
    return Corpus(
        responses=[np.zeros(size, np.uint32) for size in sizes],
        prompts=[[] for _ in sizes],
        prompt_texts=[() for _ in sizes],
        document=np.arange(answers, dtype=np.int64),
        sources=[f"{name}:{i + 1}" for i in range(answers)],
        accounting=Accounting(read=answers + 3, scored=answers, excluded={"not longer than the window": 3}),
        digests={f"/home/someone/examples/{name}": hashlib.sha256(name.encode()).hexdigest()},
        without_prompt=0,
        from_ids=answers,
    )


def suspect(name: str, *, green: int, z: float, log10_p: float, rank: int, tau: float, verdict: Verdict) -> Suspect:
    pairs, tokens = 17_204, 31_012
    rng = np.random.default_rng(len(name))
    count = count_test(green, pairs=pairs, k=64, decoy_rank=rank + 1, decoys=999)
    weighted = WeightedTest(
        name="centred",
        pairs=61_377,
        statistic=z * 41.7,
        sd=41.7,
        log10_p=log10_p,
        log10_p_saddlepoint=log10_p - 0.81,
        log10_p_smallest=-9000.0,
        decoy_rank=rank,
        decoys=999,
        decoy_z=rng.standard_normal(999),
    )
    result = ModelResult(
        scope="demo",
        fingerprint="ab" * 32,
        activated=False,
        window=1,
        gamma_256=64,
        delta=3.0,
        tokens=tokens,
        positions=30_451,
        left_out_prompt=561,
        prompt_policy="own",
        reference="smollm2",
        reference_nll=1.87,
        reference_check=None,
        decoy_seed=0,
        cautions=(),
        unweighted=count,
        weighted=(weighted,),
        effect=EffectSize(tau=tau, low=tau - 0.018, high=tau + 0.018),
        concentration=None,
        main_test="centred",
        min_p_rank=None,
        log10_p=log10_p,
        log10_p_holm=log10_p,
        scopes_tested=1,
        level=LEVEL,
        verdict=verdict,
    )
    growth = [
        GrowthPoint(
            tokens=tokens * step // 12,
            count_log10_p=count.log10_p * step / 12,
            main_log10_p=log10_p * step / 12 + 0.3 * float(np.sin(step)) * (step < 12),
        )
        for step in range(1, 13)
    ]
    return Suspect(
        corpus=corpus(f"{name}.jsonl", answers=120, tokens=tokens),
        result=result,
        growth=growth,
        warnings=[Warned.NOT_ACTIVATED, Warned.PUBLISHED],
    )


def demo_of() -> Demo:
    pooled = count_test(14_210, pairs=27_480, k=64)
    documents = [
        DocumentResult(
            source=f"teacher.jsonl:{i + 1}",
            pairs=130,
            score=70,
            log10_p=-11.0,
            log10_p_holm=-8.4,
            verdict=Verdict.DEPENDS if i % 40 else Verdict.NO_SIGN,
        )
        for i in range(360)
    ]
    return Demo(
        teacher_corpus=corpus("teacher.jsonl", answers=360, tokens=52_713),
        teacher=TextResult(
            scope="demo",
            fingerprint="ab" * 32,
            window=1,
            gamma_256=64,
            mean_score=0.25,
            cautions=(),
            documents=documents,
            pooled=pooled,
            pooled_verdict=Verdict.DEPENDS,
            level=LEVEL,
            tokens=52_713,
            left_out_prompt=904,
            prompt_policy="own",
        ),
        student=suspect("student", green=4_532, z=11.93, log10_p=-31.214, rank=1, tau=0.131, verdict=Verdict.DEPENDS),
        clean_twin=suspect(
            "clean-twin", green=4_330, z=0.42, log10_p=-0.171, rank=338, tau=0.005, verdict=Verdict.NO_SIGN
        ),
        teacher_warnings=[Warned.NOT_ACTIVATED, Warned.PUBLISHED],
        tokenizer="9897" * 16,
        fitting_commitments=65,
    )


@pytest.fixture(scope="module")
def demo() -> Demo:
    return demo_of()


@pytest.fixture(scope="module")
def html(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(demo, tmp_path_factory.mktemp("report")).read_text(encoding="utf-8")


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Demo], str]:
    return lambda demo: write_report(demo, tmp_path).read_text(encoding="utf-8")


def cells(html: str, label: str) -> list[list[str]]:
    """Return the body rows of the table in the region *label*, tags and spaces taken out."""
    region = html[html.index(f'aria-label="{label}" tabindex') :]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", region[: region.index("</table>")], re.DOTALL)
    plain = [[re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]
    return [row for row in plain if len(row) > 1][1:]


# --- self-contained, under a policy ---------------------------------------------------------------------------------


def test_nothing_is_loaded_sent_or_run(html: str) -> None:
    page = Page(html)
    assert sorted(tag for tag, _ in page.elements if tag in LOADING) == ["style"]
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "action", "data", "poster"} & attributes.keys(), tag
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"https?:|//|@import|url\((?!#)", html)


def test_the_policy_allows_the_one_style_sheet_and_nothing_else(html: str) -> None:
    (policy,) = [meta["content"] for meta in Page(html).all("meta") if meta.get("http-equiv")]
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert html.index("http-equiv") < html.index("<style>")


def test_no_element_has_a_style_attribute(html: str) -> None:
    assert not [tag for tag, attributes in Page(html).elements if "style" in attributes]


def test_every_colour_of_a_plot_has_its_class_for_the_dark(html: str) -> None:
    page = Page(html)
    coloured = [
        (f"{paint}-", attributes)
        for _, attributes in page.elements
        for paint in ("fill", "stroke")
        if attributes.get(paint, "none") != "none"
    ]
    assert len(coloured) > 50
    assert all(prefix in attributes.get("class", "") for prefix, attributes in coloured)


def test_ids_are_unique_and_every_reference_is_met(html: str) -> None:
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    named = [attributes["href"] for _, attributes in page.elements if "href" in attributes]
    named += re.findall(r"url\((#[^)]*)\)", html)
    named += ["#" + attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes]
    assert len(named) > 20
    assert {name[1:] for name in named} <= set(ids)


def test_it_can_be_read_by_those_who_do_not_see_it(html: str) -> None:
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(th.get("scope") in {"col", "row", "rowgroup"} for th in page.all("th"))
    plots = page.all("svg")
    assert [plot["role"] for plot in plots] == ["img"] * 3
    assert "student at 31,012 tokens: weighted 31.2, count 4.6; clean twin" in plots[0]["aria-label"]
    assert "999 decoy keys" in plots[1]["aria-label"]
    assert plots[1]["aria-label"].endswith("the real key's at 11.9.")


# --- what it says ---------------------------------------------------------------------------------------------------


def test_the_table_holds_the_figures_of_the_object(html: str, demo: Demo) -> None:
    rows = cells(html, "All the figures")
    assert [row[0] for row in rows] == ["count", "count", "centred", "count", "centred"]
    pooled = demo.teacher.pooled
    assert rows[0][1:5] == ["27,480", "14,210", "0.2500", "0.5171"]
    assert float(rows[0][6].replace(MINUS, "-")) == pytest.approx(pooled.log10_p, abs=0.005)
    assert rows[0][7:] == ["–", "–", "–"]  # noqa: RUF001
    for at, story in ((1, demo.student), (3, demo.clean_twin)):
        count, centred, effect = story.result.count, story.result.weighted[-1], story.result.effect
        assert effect is not None
        assert centred.log10_p_saddlepoint is not None
        z = (count.green - count.pairs / 4) / (count.pairs * 3 / 16) ** 0.5
        numbers = [cell.replace(",", "").replace(MINUS, "-") for cell in rows[at]]
        assert numbers[1:3] == [str(count.pairs), str(count.green)]
        assert float(numbers[4]) == pytest.approx(count.green / count.pairs, abs=5e-5)
        assert float(numbers[5]) == pytest.approx(z, abs=0.005)
        assert float(numbers[6]) == pytest.approx(count.log10_p, abs=0.005)
        assert rows[at][8] == f"{count.decoy_rank} of 1,000"
        numbers = [cell.replace(",", "").replace(MINUS, "-") for cell in rows[at + 1]]
        assert numbers[1:3] == [str(centred.pairs), "–"]  # noqa: RUF001
        assert numbers[3] == "0.2500"
        assert float(numbers[5]) == pytest.approx(centred.z, abs=0.005)
        assert float(numbers[6]) == pytest.approx(centred.log10_p, abs=0.005)
        assert float(numbers[7]) == pytest.approx(centred.log10_p_saddlepoint, abs=0.005)
        assert rows[at + 1][8] == f"{centred.decoy_rank} of 1,000"
        interval = [float(number) for number in re.findall(r"-?[\d.]+", numbers[9])]
        assert interval == pytest.approx([effect.tau, effect.low, effect.high], abs=5e-4)


def test_the_headlines_give_verdict_p_text_and_rank(html: str) -> None:
    student, twin = re.findall(r"<article.*?</article>", html, re.DOTALL)
    assert '<span class="verdict depends">depends on the key</span>' in student
    assert "<i>p</i> ≤ 6.2&nbsp;&times;&nbsp;10<sup>−32</sup></p>" in student  # noqa: RUF001
    assert "31,012 tokens in 120 answers" in student
    assert "<strong>1 of 1,000</strong>: above all 999 keys that nobody used" in student
    assert "a finding at 10<sup>−6</sup> or below" in student  # noqa: RUF001
    assert '<span class="verdict no_sign">no sign of the key</span>' in twin
    assert "<i>p</i> ≤ 0.68</p>" in twin
    assert "<strong>338 of 1,000</strong>: 337 of 999 keys that nobody used do as well or better" in twin


def test_the_page_claims_no_more_than_the_verdicts(demo: Demo, written: Callable[[Demo], str], html: str) -> None:
    assert "The student’s answers depend on the teacher’s key." in html  # noqa: RUF001
    result = replace(demo.student.result, verdict=Verdict.NO_SIGN)
    other = written(replace(demo, student=replace(demo.student, result=result)))
    assert "answers depend on the teacher" not in other
    assert "The student: no sign of the key. Its clean twin: no sign of the key." in Page(other).text
    assert "depends on the key" not in other.replace("Verdict: depends on the key, <i>p</i>", "")


def test_it_says_what_it_does_not_say(html: str) -> None:
    text = Page(html).text
    assert DOES_NOT_SAY in text
    for limit in ("example key is published", "Key randomness not verifiable", "One key, one student", "135 million"):
        assert limit in text
    assert "351 of its 360 answers are found marked" in text
    assert "All 65 published commitments fit the key" in text
    assert f"taggant {__version__}" in text
    for command in (
        "taggant demo --out report",
        "taggant detect model examples/student.jsonl --keyring examples/keyring.json --reference "
        "examples/student-reference.npz",
    ):
        assert command in text


def test_a_key_that_was_not_committed_to_is_said_so(demo: Demo, written: Callable[[Demo], str]) -> None:
    text = Page(written(replace(demo, fitting_commitments=64))).text
    assert "Only 64 of 65 published commitments fit the key" in text
    assert "this is not the key that was committed to" in text


def test_warnings_stand_with_whose_they_are(demo: Demo, written: Callable[[Demo], str]) -> None:
    warned = replace(demo.clean_twin, warnings=[*demo.clean_twin.warnings, Warned.DECOYS_SPREAD])
    html = unescape(written(replace(demo, clean_twin=warned, teacher_warnings=[Warned.NO_PROMPTS])))
    assert f"<li>T{Warned.DECOYS_SPREAD.value[1:]} (clean twin).</li>" in html
    assert f"<li>S{Warned.NO_PROMPTS.value[1:]} (teacher).</li>" in html


def test_every_record_is_accounted_for(html: str, demo: Demo) -> None:
    rows = cells(html, "Where every record went")
    assert rows[0] == ["teacher", "363", "360", "3", "0", "52,713", "360 of 360", "0", "904"]
    for row in rows:
        read, scored, excluded, malformed = map(int, row[1:5])
        assert read == scored + excluded + malformed
    assert "student: 3 excluded, not longer than the window" in html
    for name, digest in demo.student.corpus.digests.items():
        assert digest in html
        assert Path(name).name in html
    assert "/home/someone" not in html


def test_records_that_do_not_add_up_are_a_defect(demo: Demo, tmp_path: Path) -> None:
    corpus = replace(demo.student.corpus, accounting=Accounting(read=5, scored=4))
    with pytest.raises(TaggantError, match="5 records were read and 4 are accounted for"):
        write_report(replace(demo, student=replace(demo.student, corpus=corpus)), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- plots ----------------------------------------------------------------------------------------------------------


def test_without_prefixes_and_decoys_there_is_no_plot(demo: Demo, written: Callable[[Demo], str]) -> None:
    def bare(suspect: Suspect) -> Suspect:
        weighted = replace(suspect.result.weighted[0], decoy_rank=None, decoys=0, decoy_z=np.zeros(0))
        count = replace(suspect.result.count, decoy_rank=None, decoys=0)
        return replace(suspect, growth=[], result=replace(suspect.result, weighted=(weighted,), unweighted=count))

    page = Page(written(replace(demo, student=bare(demo.student), clean_twin=bare(demo.clean_twin))))
    assert page.all("svg") == []
    assert "Decoy rank" in page.text
    assert "nobody used do" not in page.text


def test_without_a_reference_the_count_is_the_main_test(demo: Demo, written: Callable[[Demo], str]) -> None:
    result = replace(
        demo.student.result,
        weighted=(),
        effect=None,
        reference=None,
        reference_nll=None,
        main_test="count",
        log10_p=demo.student.result.count.log10_p,
        log10_p_holm=demo.student.result.count.log10_p,
    )
    html = written(replace(demo, student=replace(demo.student, result=result)))
    assert re.search(r"<i>p</i> = [\d.]+&nbsp;&times;&nbsp;10<sup>−5</sup></p>", html)  # noqa: RUF001
    assert [row[0] for row in cells(html, "All the figures")] == ["count", "count", "count", "centred"]
    assert len(Page(html).all("svg")) == 2


def test_an_enormous_z_is_drawn(demo: Demo, written: Callable[[Demo], str]) -> None:
    weighted = (replace(demo.student.result.weighted[0], statistic=1e6),)
    html = written(replace(demo, student=replace(demo.student, result=replace(demo.student.result, weighted=weighted))))
    assert len(html) < 200_000


# --- hostile strings ------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202eevil\x00\u2028"


def test_hostile_strings_are_text(demo: Demo, written: Callable[[Demo], str]) -> None:
    accounting = Accounting(
        read=3, scored=1, excluded={HOSTILE: 1}, malformed=1, problems=[HOSTILE * 100], notes={HOSTILE: 2}
    )
    corpus = replace(demo.student.corpus, accounting=accounting, digests={HOSTILE: HOSTILE})
    result = replace(demo.student.result, scope=HOSTILE, fingerprint=HOSTILE, reference=HOSTILE, prompt_policy=HOSTILE)
    html = written(replace(demo, student=replace(demo.student, corpus=corpus, result=result), tokenizer=HOSTILE * 2))
    page = Page(html)
    assert page.all("script") == []
    assert "<script>" in page.text
    assert r"\x1b[31m\u202eevil\x00\u2028" in html
    assert not [c for c in html if not (c.isprintable() or c == "\n")]


# --- the file -------------------------------------------------------------------------------------------------------


def test_the_same_demo_gives_the_same_bytes(demo: Demo, tmp_path: Path) -> None:
    import matplotlib

    first = write_report(demo, tmp_path / "a" / "b").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert write_report(demo_of(), tmp_path / "c").read_bytes() == first
        assert dict(matplotlib.rcParams) == before
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["report.html"]


def test_it_stays_small(html: str) -> None:
    assert len(html) < 100_000


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(library: str, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"{library}: pip install 'taggant\[report\]'"):
        write_report(demo, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file_is_named(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("something", encoding="utf-8")
    with pytest.raises(UsageError, match="the report cannot be written there"):
        write_report(demo, tmp_path / "out")
    assert (tmp_path / "out").read_text(encoding="utf-8") == "something"


def test_an_old_report_stays_whole_if_the_new_one_fails(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UsageError, match="No space left on device"):
        write_report(demo, tmp_path)
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [("report.html", "old")]
