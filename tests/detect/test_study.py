"""The study harness: configuration, text, the n-gram lab against its formula, a whole small study, its tables."""

from __future__ import annotations

import io
import json
import math
import re
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from detect.study.cell import Cell, cells_of, read_json
from detect.study.config import ARMS, DOMAINS, LABS, StudyConfig, TextConfig, load_config, shipped_configs
from detect.study.foreign import foreign_size, retokenised, shared_boundaries
from detect.study.keys import study_scope
from detect.study.lab import open_lab
from detect.study.measure import COUNT, Measurement
from detect.study.ngram import train_ngrams
from detect.study.outputs import Outputs
from detect.study.run import gather, measure_again, open_folder, run_study
from detect.study.table import Table, load_results, null_table, signal_table, study_tables
from detect.study.text import KINDS, Half, Passage, digest_of, find_passages
from detect.study.work import mixed_answers, tasks_of, twin_of
from watermark.errors import InputError, UsageError
from watermark.tokenizer import load

# --- configuration ---


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configurations_load_and_say_what_they_are(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert config.lab in LABS
    assert len(config.digest()) == 64


def test_three_sizes_are_shipped() -> None:
    assert {"tiny", "small", "real"} <= set(shipped_configs())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("dosis = [0.1]", "did you mean 'doses'"),
        ("[text]\nvocabluary = 300", "did you mean 'vocabulary'"),
        ("zzz = 1", "known are"),
        ("windows = 2", "expected a list"),
        ('windows = ["2"]', "expected int"),
        ("windows = [true]", "expected int"),
        ("windows = [9]", "widths from 1 to 8"),
        ("doses = [0.0]", "shares above 0"),
        ("doses = [10]", "shares above 0"),
        ("keys = [1, 1]", "each value once"),
        ("clean_seeds = [101]", "two or more"),
        ("clean_seeds = [1, 2]", "other seeds"),
        ('references = ["bse"]', "of base, twin, teacher"),
        ('arms = ["neutralised"]\narm_dose = 0.5', "one of the doses"),
        ('arms = ["tool-calls"]', "characters of tool calls"),
        ("windows = [1", "not TOML"),
    ],
)
def test_a_configuration_is_read_strictly(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(f'name = "x"\nlab = "tiny"\n{line}\n', encoding="utf-8")
    with pytest.raises(InputError, match=says):
        load_config(path)


def test_a_configuration_wants_a_name_and_a_known_file(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('lab = "tiny"\n', encoding="utf-8")
    with pytest.raises(InputError, match="expected the key 'name'"):
        load_config(path)
    with pytest.raises(UsageError, match="expected a TOML file or one of"):
        load_config(tmp_path / "absent.toml")


def test_the_number_of_workers_is_not_in_the_digest() -> None:
    config = load_config("tiny")
    assert replace(config, workers=7).digest() == config.digest()
    assert replace(config, delta=1.0).digest() != config.digest()
    assert replace(config, text=replace(config.text, tool_calls=1)).digest() != config.digest()


def test_cells_come_twins_first_and_have_names_of_their_own() -> None:
    config = load_config("small")
    cells = cells_of(config)
    assert [cell.name for cell in cells[:3]] == ["d0-s101", "d0-s102", "w1-d10-k1-s1"]
    assert len({cell.name for cell in cells}) == len(cells) == 2 + 2 * 3 * 3
    assert twin_of(cells[0], config) == cells[1]
    assert twin_of(cells[1], config) == cells[0]
    assert twin_of(cells[5], config) == cells[0]


def test_every_task_comes_after_those_that_it_needs(tmp_path: Path) -> None:
    config = replace(load_config("small"), arms=tuple(arm for arm in ARMS if arm != "tool-calls"), arm_dose=0.1)
    tasks = tasks_of(config, tmp_path)
    made = {task.done for task in tasks}
    assert len(made) == len(tasks)
    assert all(set(task.needs) <= made for task in tasks)
    student = next(task for task in tasks if task.kind == "student" and task.cell and task.cell.arm == "code")
    # At a dose below 1 the other answers are of that kind too.
    assert {path.name for path in student.needs} >= {"marked-w1-k1-code.json", "unmarked-code.json"}


# --- keys, text, answers ---


class _Named:
    """As much of a tokenizer as a scope needs."""

    special_ids = (0,)

    def digest(self) -> str:
        return "ab" * 32


def test_study_keys_follow_from_their_number() -> None:
    def scope(number: int, window: int = 1) -> object:
        return study_scope(number, tokenizer=_Named(), window=window, delta=2.0, gamma_256=64)  # type: ignore[arg-type]

    assert scope(1).lane_words().tolist() == scope(1).lane_words().tolist()
    assert scope(1).commitments()[0] != scope(2).commitments()[0]
    assert scope(1).params.account_lanes == 0
    assert scope(1).params.special_ids == (0,)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder of installed packages: some modules with docstrings, and licences."""
    root = tmp_path / "site"
    for package in ("alpha", "beta", "gamma"):
        for number in range(12):
            path = root / package / f"m{number}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            prose = f"Module {number} of {package}. " + f"It says something of {package} and {number}. " * 12
            code = "".join(f"def f{i}(x):\n    return x + {i} * {number}\n" for i in range(30))
            code += "".join(
                f"print('{package}', {i} * {number}, sep=x[{i}], end={{'a': [None, {i}.5]}})\n" for i in range(9)
            )
            path.write_text(f'"""{prose}"""\n{code}', encoding="utf-8")
        info = root / f"{package}-1.dist-info"
        info.mkdir()
        (info / "LICENSE").write_text("Permission is hereby granted, free of charge, to any person. " * 8)
        (info / "METADATA").write_text(f"Name: {package}\n" + "Classifier: Something\n" * 20)
    return root


def test_text_is_found_in_packages_without_repeats(installed: Path) -> None:
    wanted = dict.fromkeys(KINDS, 2000)
    found = find_passages(wanted, folders=[installed])
    assert {passage.kind for passage in found} == set(KINDS)
    assert digest_of(found) == digest_of(find_passages(wanted, folders=[installed]))
    texts = [passage.text for passage in found]
    assert len(set(texts)) == len(texts)
    assert sum("Permission is hereby" in text for text in texts) <= 1
    halves = {}
    for passage in found:
        assert halves.setdefault(passage.source, passage.half) is passage.half
    assert all('"""' not in passage.text for passage in found if passage.kind == "prose")
    lines = [line for passage in found if passage.kind == "tool-calls" for line in passage.text.splitlines()]
    assert len(lines) >= 9
    for line in lines:
        call = json.loads(line)
        package, product = call["arguments"].pop("args")
        i = int(product.partition(" * ")[0])
        assert package in ("alpha", "beta", "gamma")
        assert call == {"tool": "print", "arguments": {"sep": f"x[{i}]", "end": {"a": [None, i + 0.5]}}}


def test_too_little_text_is_said(installed: Path) -> None:
    with pytest.raises(UsageError, match=r"found .* characters of code"):
        find_passages({"code": 10_000_000}, folders=[installed])
    with pytest.raises(UsageError, match="text kind 'cod'"):
        find_passages({"cod": 10})


def _outputs(count: int = 20, *, low: int = 1, high: int = 50, seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    return Outputs(
        prompts=[rng.integers(low, high, 4).astype(np.uint32) for _ in range(count)],
        responses=[rng.integers(low, high, int(n)).astype(np.uint32) for n in rng.integers(0, 30, count)],
        ended=rng.random(count) < 0.5,
        kinds=("code",) * count,
    )


def test_answers_survive_their_file(tmp_path: Path) -> None:
    outputs = _outputs()
    outputs.save(tmp_path / "o.npz")
    loaded = Outputs.load(tmp_path / "o.npz")
    for a, b in zip(outputs.responses + outputs.prompts, loaded.responses + loaded.prompts, strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(outputs.ended, loaded.ended)
    (tmp_path / "bad.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="run the study again"):
        Outputs.load(tmp_path / "bad.npz")


def test_first_tokens_is_the_shortest_run_that_has_them() -> None:
    outputs = _outputs()
    part = outputs.first_tokens(100)
    assert part.tokens >= 100 > part.tokens - len(part.responses[-1])
    assert outputs.first_tokens(10**9).tokens == outputs.tokens


@pytest.mark.parametrize("dose", [0.1, 0.5, 1.0])
def test_a_dose_is_a_share_of_the_answers(dose: float) -> None:
    unmarked, marked = _outputs(high=50), _outputs(low=100, high=150)
    mixed = mixed_answers(unmarked, marked, dose=dose, seed=3)
    taken = [np.array_equal(a, b) and len(a) > 0 for a, b in zip(mixed.responses, marked.responses, strict=True)]
    empty = sum(len(a) == 0 for a in marked.responses)
    assert round(dose * 20) - empty <= sum(taken) <= round(dose * 20)
    assert mixed_answers(unmarked, None, dose=0.0, seed=3) is unmarked


# --- the n-gram lab ---


def _witten_bell(stream: list[int], history: tuple[int, ...], token: int, vocabulary: int) -> float:
    """Interpolated Witten-Bell, straight from the formula."""
    if not history:
        times, kinds = stream.count(token), len(set(stream))
        return (times + kinds / vocabulary) / (len(stream) + kinds)
    width = len(history)
    after = [stream[i + width] for i in range(len(stream) - width) if tuple(stream[i : i + width]) == history]
    shorter = _witten_bell(stream, history[1:], token, vocabulary)
    if not after:
        return shorter
    kinds = len(set(after))
    return (after.count(token) + kinds * shorter) / (len(after) + kinds)


def test_ngrams_are_witten_bells() -> None:
    rng = np.random.default_rng(1)
    stream = rng.integers(0, 7, 60)
    model = train_ngrams(stream, vocabulary=9)
    histories = [(u, w) for u in range(9) for w in range(9)]
    p = model.probabilities(np.array([u for u, _ in histories]), np.array([w for _, w in histories]))
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-12)
    for row, history in zip(p, histories, strict=True):
        expected = [_witten_bell(stream.tolist(), history, v, 9) for v in range(9)]
        np.testing.assert_allclose(row, expected, rtol=1e-12)


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, Path]:
    """A whole study of n-grams on a few of the standard library's files."""
    pytest.importorskip("tokenizers", reason="training a vocabulary needs the tokenizers library")
    config = replace(
        load_config("tiny"),
        name="test",
        doses=(1.0,),
        answers=300,
        answer_tokens=64,
        suspect_tokens=8000,
        prefixes=(2000,),
        decoys=19,
        arms=("relay", "cross-tokenizer", "code", "tool-calls"),
        text=TextConfig(code=400_000, prose=0, boilerplate=0, tool_calls=150_000, vocabulary=600),
    )
    folder = tmp_path_factory.mktemp("study") / "made"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detect.study.ngram.find_passages", _few_passages)
        run_study(config, folder)
    return config, folder


def _few_passages(characters: dict[str, int], *, folders: list[Path]) -> list[Passage]:
    names = ["argparse", "ast", "calendar", "csv", "datetime", "difflib", "enum", "ftplib", "inspect", "typing"]
    found = []
    for number, name in enumerate(names):
        text = (folders[0] / f"{name}.py").read_text(encoding="utf-8")[:40_000]
        for i in range(0, len(text), 1500):
            half = list(Half)[(number + i // 1500) % 4]
            found.append(Passage(kind="code", half=half, source=name, text=text[i : i + 1500]))
    return found + find_passages({"tool-calls": characters["tool-calls"]}, folders=folders)


def test_a_study_finds_its_students_and_no_others(tiny_study: tuple[StudyConfig, Path]) -> None:
    config, folder = tiny_study
    measured = load_results(folder)
    own = [m for m in measured if m.own and m.prefix == 0 and m.arm in ("", "relay")]
    assert {m.test for m in own} >= {COUNT, "centred"}
    for m in own:
        assert m.z > 3, m
        assert m.log10_p < -2, m
    relayed = [m for m in own if m.arm == "relay" and m.test == "centred" and m.reference == "base"]
    students = [m for m in own if not m.arm and m.test == "centred" and m.reference == "base"]
    # The teacher itself leans all the way, a student less.
    assert min(m.tau for m in relayed if m.tau is not None) > max(m.tau for m in students if m.tau is not None)
    null = [m for m in measured if not m.own]
    assert len(null) > 50
    # Tests of one student are dependent; a Bonferroni level of 0.001 over all of them is still a level.
    assert min(m.log10_p for m in null) > math.log10(0.001 / len(null))
    assert len(cells_of(config)) == len({m.cell for m in measured})


@pytest.mark.parametrize("arm", ["cross-tokenizer", "code", "tool-calls"])
def test_students_of_other_vocabularies_and_domains_are_found(tiny_study: tuple[StudyConfig, Path], arm: str) -> None:
    config, folder = tiny_study
    measured = [m for m in load_results(folder) if m.arm == arm and m.prefix == 0 and m.reference == "twin"]
    own = [m for m in measured if m.own and m.test == "centred"]
    assert [m.window for m in own] == [1, 2]
    assert min(m.z for m in own) > 5
    assert max(abs(m.z) for m in measured if not m.own) < 4
    said = [Outputs.load(folder / "cells" / m.cell / "outputs.npz") for m in own]
    for outputs in said:
        assert outputs.tokens >= 0.9 * config.suspect_tokens
        if arm in DOMAINS:
            assert set(outputs.kinds) == {arm}


def test_answers_pass_through_text_into_another_vocabulary(tiny_study: tuple[StudyConfig, Path]) -> None:
    _, folder = tiny_study
    ours, theirs = (load(folder / "lab" / f"{name}.json") for name in ("tokenizer", "foreign-tokenizer"))
    assert theirs.vocabulary_size == foreign_size(ours.vocabulary_size) == 1200
    answers = Outputs.load(folder / "lab" / "unmarked.npz")
    there = retokenised(answers, of=ours, by=theirs)
    back = retokenised(there, of=theirs, by=ours)
    texts = [ours.decode(ids) for ids in answers.responses]
    assert [theirs.decode(ids) for ids in there.responses] == texts == [ours.decode(ids) for ids in back.responses]
    assert [len(ids) for ids in there.responses] != [len(ids) for ids in answers.responses]
    assert shared_boundaries(texts, first=ours, second=ours) == 1.0
    assert 0.5 < shared_boundaries(texts, first=ours, second=theirs) < 0.99
    assert shared_boundaries([], first=ours, second=theirs) == 1.0


def test_an_arm_that_a_lab_lacks_is_refused_by_name(tmp_path: Path) -> None:
    lab, answers = open_lab(load_config("real-two-cores"), tmp_path), _outputs()
    with pytest.raises(UsageError, match="arm 'paraphrase': the real lab has none"):
        lab.paraphrased(answers, seed=1)
    with pytest.raises(UsageError, match="arm 'neutralised': the real lab has none"):
        lab.neutralised_outputs(tmp_path, answers, seed=1)
    with pytest.raises(UsageError, match="arm 'cross-tokenizer': the real lab has none"):
        lab.foreign_student(answers, seed=1, path=tmp_path)
    with pytest.raises(UsageError, match="arm 'cross-tokenizer': the real lab has none"):
        lab.foreign_outputs(tmp_path, seed=1)


def test_a_study_is_resumed_where_it_stopped(tiny_study: tuple[StudyConfig, Path]) -> None:
    config, folder = tiny_study
    before = (folder / "results.jsonl").read_text(encoding="utf-8")
    cell = folder / "cells" / "w1-d100-k1-s1"
    untouched = (cell / "student.json").stat().st_mtime_ns
    (cell / "result.json").unlink()
    began: list[str] = []
    run_study(config, folder, progress=lambda task, done, total: began.append(task))
    assert began == ["measure w1-d100-k1-s1", ""]
    assert (cell / "student.json").stat().st_mtime_ns == untouched

    def without_seconds(text: str) -> list[str]:
        return [line.rpartition(', "seconds"')[0] for line in text.splitlines()]

    assert without_seconds((folder / "results.jsonl").read_text(encoding="utf-8")) == without_seconds(before)
    measure_again(config, folder)
    assert without_seconds(gather(config, folder).read_text(encoding="utf-8")) == without_seconds(before)


def test_a_folder_of_another_study_is_refused(tiny_study: tuple[StudyConfig, Path], tmp_path: Path) -> None:
    config, folder = tiny_study
    with pytest.raises(UsageError, match="another configuration"):
        open_folder(replace(config, delta=1.0), folder)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="expected an empty folder"):
        open_folder(config, tmp_path)


def test_a_cells_record_says_what_it_is(tiny_study: tuple[StudyConfig, Path]) -> None:
    _, folder = tiny_study
    record = read_json(folder / "cells" / "w2-d100-k2-s1" / "cell.json")
    assert (record["window"], record["dose"], record["key"], record["twin"]) == (2, 1.0, 2, "d0-s101")
    assert set(record["reference_nll"]) == {"base", "twin"}


def test_plots_of_a_study(tiny_study: tuple[StudyConfig, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra report")
    pytest.importorskip("jinja2", reason="plots need the extra report")
    from detect.study.plots import write_study_plots

    _, folder = tiny_study
    out = write_study_plots(load_results(folder), tmp_path / "study.svg")
    root = ElementTree.fromstring(out.read_text(encoding="utf-8"))  # noqa: S314 - made here
    assert sum(element.tag.endswith("}svg") for element in root) == 5


# --- tables ---


def _measurement(test: str, z: float, *, key: int = 1, own: bool = True, reference: str = "twin") -> Measurement:
    return Measurement(
        cell=f"w1-d10-k{key}-s1",
        arm="",
        window=1,
        dose=0.1 if own else 0.0,
        key=key,
        own=own,
        seed=1,
        test=test,
        reference="" if test == COUNT else reference,
        prefix=0,
        tokens=1000,
        pairs=500,
        z=z,
        log10_p=-z,
        tau=0.1 if test == "centred" else None,
        decoy_sd=1.0,
        seconds=0.1,
    )


def test_the_ratio_to_the_count_and_its_interval() -> None:
    measured = []
    for key, (count, centred) in enumerate([(4.0, 12.0), (5.0, 13.0), (3.0, 11.0)], start=1):
        measured += [_measurement(COUNT, count, key=key), _measurement("centred", centred, key=key)]
    table = signal_table(measured)
    cells = dict(zip(table.header, table.rows[1], strict=True))
    # 36 / 12 = 3; both means have variance 1/3: half = 1.96 sqrt(1/3 + 9/3) / 4.
    half = 1.959963984540054 * math.sqrt(1 / 3 + 9 / 3) / 4
    assert cells["z / count's (95%)"] == f"3.00 [{3 - half:.2f}, {3 + half:.2f}]"
    assert cells["mean z"] == "12.00"
    assert table.rows[0][9] == ""


def test_no_ratio_to_a_count_that_is_nothing() -> None:
    table = signal_table([_measurement(COUNT, 1.0), _measurement("centred", 5.0)])
    assert table.rows[1][9] == "count's too small"


def test_null_controls_are_counted() -> None:
    measured = [_measurement(COUNT, z, key=key, own=False) for key, z in enumerate([0.1, 0.2, 1.5, 2.5])]
    table = null_table(measured)
    assert table.rows[0][5:8] == ("2 (0.4)", "2 (0.2)", "1 (0.0)")


def test_tables_in_three_formats() -> None:
    table = Table(title="A 10% table", header=("test_name", "z"), rows=(("a,b", "1.00"), ("c", "-12.50")))
    assert table.text().splitlines()[-1] == "c          -12.50"
    assert r"A 10\% table" in table.latex()
    assert r"test\_name & z \\" in table.latex()
    assert table.csv() == 'test_name,z\n"a,b",1.00\nc,-12.50\n'


def test_results_that_are_not_there_or_not_of_this_version(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="study run"):
        load_results(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"cell": 1}\n')
    with pytest.raises(InputError, match=r"results\.jsonl:1"):
        load_results(tmp_path)


def test_tables_of_a_whole_study(tiny_study: tuple[StudyConfig, Path]) -> None:
    _, folder = tiny_study
    signal, null, evidence = study_tables(load_results(folder))
    assert {row[1] for row in signal.rows} == {"1", "2"}
    assert len(null.rows) >= 3
    assert evidence.header[-1] == "all"


# --- transformers ---


@pytest.mark.models
def test_small_transformers_learn_answer_and_are_read() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from detect.study.transformer import Shape, Training, _head_loss, answer, fine_tune, pretrain, read, rewrite

    generator = torch.Generator().manual_seed(0)
    states = torch.randn(700, 32, generator=generator, requires_grad=True)
    head = torch.randn(90, 32, generator=generator, requires_grad=True)
    labels = torch.randint(0, 90, (700,), generator=generator)
    ours = _head_loss(states, head, labels)
    theirs = torch.nn.functional.cross_entropy(states @ head.T, labels)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=0.02)
    mine = torch.autograd.grad(ours, [states, head])
    for a, b in zip(mine, torch.autograd.grad(theirs, [states, head]), strict=True):
        assert float((a - b).norm() / b.norm()) < 0.02

    # A language of two turns: after an even id the next, after an odd one the one before.
    rng = np.random.default_rng(0)
    texts = [np.tile([2 * k, 2 * k + 1], 20).astype(np.uint32) for k in rng.integers(1, 20, 200)]
    shape = Shape(vocabulary=48, width=32, hidden=64, layers=2, heads=2, context=64)
    model = pretrain(texts, name="m", shape=shape, training=Training(length=40, batch=8, epochs=4), end=0, seed=1)
    assert model.losses[-1] < model.losses[0] / 2
    prompts = [text[:4] for text in texts[:8]]
    said = answer(model, prompts, ["code"] * 8, tokens=12, end=0, seed=5)
    again = answer(model, prompts, ["code"] * 8, tokens=12, end=0, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(said.responses, again.responses, strict=True))
    reference = read(model, said, tokenizer="00" * 32, top=4)
    assert reference.negative_log_likelihood() < 0.7 * math.log(48)
    with torch.inference_mode():
        whole = torch.tensor(np.concatenate([said.prompts[0], said.responses[0]]).astype(np.int64))[None]
        p = torch.softmax(model.model(input_ids=whole).logits[0].float(), dim=-1)
    for place, token in enumerate(said.responses[0].tolist()):
        assert float(p[3 + place, token]) == pytest.approx(float(reference.said_p[place]), abs=0.02)
    student = fine_tune(model, said, name="s", training=Training(batch=4, rate=1e-3), end=0, seed=2)
    assert len(student.losses) == 2
    changed = rewrite(model, said, span=4, share=0.5, end=0, seed=1)
    assert [len(ids) for ids in changed.responses] == [len(ids) for ids in said.responses]


def test_a_cells_name_tells_its_arm() -> None:
    assert Cell(window=1, dose=0.02, key=3, seed=1).name == "w1-d2-k3-s1"
    assert Cell(window=1, dose=1.0, key=3, seed=1, arm="relay").name == "w1-d100-k3-s1-relay"


def test_the_python_guide_runs_up_to_its_study() -> None:
    """The output that docs/how-to/python-api.md shows is what its blocks print."""
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "python-api.md").read_text(encoding="utf-8")
    detection = guide.partition("## A study")[0]
    blocks = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", detection, flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for code, shown in blocks:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(code, names)  # noqa: S102 - the repository's own document
        assert printed.getvalue() == shown


def test_the_citation_names_this_version() -> None:
    import watermark

    citation = (Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {watermark.__version__}\n" in citation


def test_the_real_labs_prompts_are_disjoint_and_of_three_kinds() -> None:
    from detect.study.real import study_prompts

    asked, audit = study_prompts()
    assert not {prompt for prompt, _ in asked} & {prompt for prompt, _ in audit}
    assert {kind for _, kind in asked} == {"code", "prose", "tool-calls"}
    assert len(asked) >= load_config("real").answers


def test_arms_may_be_added_to_a_study_and_a_test_that_is_unknown_is_refused(tmp_path: Path) -> None:
    config = load_config("small")
    assert replace(config, arms=("relay",)).digest() == config.digest()
    with pytest.raises(UsageError, match="tests: expected of count"):
        run_study(replace(config, tests=("centered",)), tmp_path / "new")
    assert not (tmp_path / "new").exists()
