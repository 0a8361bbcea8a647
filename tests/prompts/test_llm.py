"""The engine `llm` against a real HTTP server that answers well, late, cut off, wrongly, or not at all."""

from __future__ import annotations

import json
import random
import threading

import pytest
from chat_server import ChatServer, true_answer

from carzero.errors import UserError
from carzero.prompts.cache import AnswerCache
from carzero.prompts.llm import PROMPT, LLMEngine, LLMOptions, read_prompt
from carzero.prompts.verify import Answer, Verifier

REPORTS = [
    "Small left pleural effusion. No pneumothorax.",
    "Heart size is normal. Right lower lobe consolidation may represent pneumonia.",
    "Stable cardiomegaly without edema.",
    "Mild bibasilar atelectasis, no effusion.",
]


@pytest.fixture(scope="session")
def truths(engine):
    return {report: true_answer(report, engine) for report in REPORTS}


@pytest.fixture
def ask(truths, engine, tmp_path):
    """Aligns reports through a scripted server; returns the results, the engine and the server."""

    def run(scripts=None, reports=REPORTS, **options):
        given = {"model": "m", "timeout": 0.4, "retries": 3, "concurrency": 3, **options}
        with ChatServer(truths, scripts) as server:
            llm = LLMEngine(LLMOptions(server.url, **given), AnswerCache(tmp_path / "cache.sqlite"), Verifier(engine))
            try:
                return llm.align(reports), llm, server
            finally:
                llm.cache.close()

    return run


def sentences(aligned):
    return [report.sentences for report in aligned]


def expected(engine, reports=REPORTS):
    return [engine(report).sentences for report in reports]


def test_a_good_server(ask, engine):
    aligned, llm, server = ask(input_price=2.0, output_price=10.0, api_key="secret")
    assert sentences(aligned) == expected(engine)
    assert [REPORTS[0][s.start : s.end] for s in aligned[0].statements] == [
        "Small left pleural effusion.",
        "No pneumothorax.",
    ]
    assert all(s.review == "" for report in aligned for s in report.statements)
    usage = llm.usage
    assert (usage.asked, usage.asked_again, usage.failed, usage.from_cache) == (4, 0, 0, 0)
    assert (usage.input_tokens, usage.output_tokens) == (400, 40)
    assert usage.cost == pytest.approx((400 * 2 + 40 * 10) / 1e6)
    body = server.bodies[0]
    assert body["model"] == "m"
    assert body["temperature"] == 0
    assert body["response_format"]["json_schema"]["strict"] is True
    assert body["response_format"]["json_schema"]["schema"] == Answer.model_json_schema()
    assert body["messages"][:-1] == read_prompt(PROMPT)
    assert {h["Authorization"] for h in server.headers} == {"Bearer secret"}


@pytest.mark.parametrize("fault", ["429", "500", "slow"])
def test_refused_and_late_answers_are_asked_for_again(ask, engine, fault):
    aligned, llm, server = ask({REPORTS[0]: [fault, fault], REPORTS[2]: [fault]})
    assert sentences(aligned) == expected(engine)
    assert server.asked[REPORTS[0]] == 3
    assert server.asked[REPORTS[2]] == 2
    assert llm.usage.rate_limited == (3 if fault == "429" else 0)
    assert llm.usage.failed == 0


def test_nobody_asks_while_the_rate_limit_lasts(ask, truths):
    """A 429 that names 0.02 s holds back every request, not only its own."""
    _, llm, server = ask({REPORTS[0]: ["429"]}, concurrency=1)
    assert llm.usage.rate_limited == 1
    assert server.arrivals[1] - server.arrivals[0] >= 0.02


@pytest.mark.parametrize("fault", ["malformed", "truncated", "empty"])
def test_unusable_answers_are_asked_for_once_more_then_set_aside(ask, engine, fault):
    aligned, llm, server = ask({REPORTS[1]: [fault], REPORTS[3]: [fault, fault, fault]})
    truth = expected(engine)
    assert sentences(aligned) == [*truth[:3], []]
    assert llm.usage.asked_again == 2
    assert server.asked[REPORTS[3]] == 2
    (reason,) = aligned[3].unaligned
    assert reason.startswith("Set aside: the answer ")
    assert ("cut off" in reason) == (fault == "truncated")


def lie(**changes):
    def change(answer):
        answer["statements"][0] |= changes
        return answer

    return change


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"finding": "lung nodule"}, "does not name it"),
        ({"finding": "dragon"}, "no finding of the lexicon"),
        ({"side": "right"}, "does not say the side 'right'"),
        ({"severity": "severe"}, "does not say the severity 'severe'"),
        ({"severity": "huge"}, "the severity 'huge' is not one of"),
        ({"location": "apex"}, "does not say the location 'apex'"),
        ({"quote": "Large left pleural effusion."}, "the quote is not in the report"),
        ({"quote": " "}, "the quote is not in the report"),
        ({"quote": "No pneumothorax."}, "does not name it"),
    ],
)
def test_lies_are_set_aside_and_what_is_true_stays(ask, engine, changes, reason):
    aligned, llm, server = ask({REPORTS[0]: [lie(**changes)] * 2}, reports=REPORTS[:1])
    assert sentences(aligned) == [["There is no pneumothorax."]]
    assert any(reason in said for said in aligned[0].unaligned), aligned[0].unaligned
    assert any("leaves it out" in said for said in aligned[0].unaligned)
    assert llm.usage.asked_again == 1
    # the model is told what was wrong
    assert reason in server.bodies[1]["messages"][-1]["content"]
    # and believed once it tells the truth
    aligned, _, _ = ask({REPORTS[0]: [lie(**changes)]}, reports=REPORTS[:1], model="other")
    assert sentences(aligned) == expected(engine, REPORTS[:1])
    assert aligned[0].unaligned == ()


def test_a_negation_that_the_rules_read_otherwise_is_marked(ask):
    aligned, llm, _ = ask({REPORTS[0]: [lie(negated=True)]}, reports=REPORTS[:1])
    denied, other = aligned[0].statements
    assert denied.aligned == "There is no small left pleural effusion."
    assert denied.review == "the rules engine reads it as affirmed"
    assert other.review == ""
    assert llm.usage.asked_again == 0


def test_what_the_model_leaves_out_is_asked_for(ask, engine):
    def half(answer):
        return {"statements": answer["statements"][:1]}

    aligned, _, _ = ask({REPORTS[0]: [half], REPORTS[2]: [half, half]})
    assert sentences(aligned)[0] == expected(engine)[0]
    assert sentences(aligned)[2] == ["There is cardiomegaly."]
    assert aligned[2].unaligned == (
        "Set aside: 'pulmonary edema': the report speaks of it and the answer leaves it out.",
    )


def test_fences_around_the_answer_are_no_fault(ask, engine):
    aligned, llm, _ = ask({REPORTS[0]: [lambda answer: f"```json\n{json.dumps(answer)}\n```"]}, reports=REPORTS[:1])
    assert sentences(aligned) == expected(engine, REPORTS[:1])
    assert llm.usage.asked == 1


def test_a_report_without_answer_is_counted_and_asked_for_next_time(ask, engine):
    aligned, llm, server = ask({REPORTS[1]: ["500"] * 4, REPORTS[2]: ["no choice"]})
    assert sentences(aligned) == [expected(engine)[0], [], [], expected(engine)[3]]
    assert llm.usage.failed == 2
    assert aligned[1].unaligned[0].startswith("No answer: ")
    again, llm, server = ask()
    assert sentences(again) == expected(engine)
    assert set(server.asked) == {REPORTS[1], REPORTS[2]}
    assert llm.usage.from_cache == 2


def test_a_refused_key_ends_the_run_with_a_sentence(ask):
    with pytest.raises(UserError, match=r"refuses the request: .*no such key") as caught:
        ask({report: ["401"] * 9 for report in REPORTS}, api_key="secret")
    assert "secret" not in str(caught.value)


def test_no_server_ends_the_run_with_a_sentence(engine, tmp_path):
    options = LLMOptions("http://127.0.0.1:9/v1", "m", retries=0, timeout=1)
    llm = LLMEngine(options, AnswerCache(tmp_path / "c.sqlite"), Verifier(engine))
    with pytest.raises(UserError, match=r"20 requests in a row to http://127.0.0.1:9/v1 failed.*go on"):
        llm.align([f"No effusion. Case {k}." for k in range(50)])
    assert len(llm.cache) == 0


def test_equal_reports_and_later_runs_are_not_paid_for(ask, engine):
    aligned, _, server = ask(reports=[REPORTS[0], REPORTS[1], REPORTS[0]])
    assert sentences(aligned) == expected(engine, [REPORTS[0], REPORTS[1], REPORTS[0]])
    assert server.paid == {REPORTS[0]: 1, REPORTS[1]: 1}
    again, _, server = ask(reports=REPORTS)
    assert again[:2] == aligned[:2]
    assert set(server.paid) == set(REPORTS[2:])
    # another model, another answer
    _, _, server = ask(model="other")
    assert set(server.paid) == set(REPORTS)


def test_the_estimate_counts_what_is_new(ask, engine, tmp_path):
    ask(reports=REPORTS[:3])
    cache = AnswerCache(tmp_path / "cache.sqlite")
    llm = LLMEngine(LLMOptions("http://127.0.0.1:9/v1", "m", input_price=4.0), cache, Verifier(engine))
    estimate = llm.estimate([*REPORTS, REPORTS[3]])
    prompt = sum(len(m["content"]) for m in read_prompt(PROMPT))
    assert estimate["requests"] == 1
    assert estimate["input_tokens"] == (prompt + len(REPORTS[3])) / 4
    assert estimate["cost"] == pytest.approx(estimate["input_tokens"] * 4 / 1e6)


def test_the_examples_of_the_prompt_are_true(engine):
    messages = read_prompt(PROMPT)
    assert "{" not in messages[0]["content"]
    for report, answer in zip(messages[1::2], messages[2::2]):
        verdict = Verifier(engine)(Answer.model_validate_json(answer["content"]), report["content"])
        assert verdict.objections == ()
        assert all(s.review == "" for s in verdict.statements)
        said = [s.aligned for s in verdict.statements]
        assert len(said) == len(json.loads(answer["content"])["statements"])
    assert said[-1] == "There is no right pleural effusion."


@pytest.mark.parametrize("text", ["hello", "### user\nx\n", "### system\nx\n### user\ny\n", "x\n### system\ny\n"])
def test_a_wrong_prompt_gets_a_sentence(tmp_path, text):
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(UserError, match="must consist of '### system'"):
        read_prompt(tmp_path / "p.txt")


def many_reports(count: int, seed: int) -> list[str]:
    """Different reports of two to five sentences."""
    rng = random.Random(seed)
    findings = [
        "pleural effusion",
        "cardiomegaly",
        "pneumothorax",
        "atelectasis",
        "lung nodule",
        "scarring",
        "fracture",
    ]
    reports = []
    for number in range(count):
        chosen = rng.sample(findings, rng.randint(2, 5))
        parts = [rng.choice([f"No {f}.", f"Mild left {f}.", f"There may be {f}.", f"Stable {f}."]) for f in chosen]
        reports.append(" ".join([*parts, f"Examination {number} of the series."]))
    return reports


def faults_for(reports: list[str], seed: int) -> dict[str, list]:
    """Two thirds of the reports meet one or two faults that pass; none is beyond mending."""
    rng = random.Random(seed)
    wrong = [lie(side="bilateral"), lie(finding="dragon"), lie(quote="never said"), lambda a: {"statements": []}]
    scripts = {}
    for report in reports:
        if rng.random() < 0.67:
            refused = [rng.choice(["429", "500"]) for _ in range(rng.randint(0, 2))]
            # one bad answer at most: the second is the last
            bad = [rng.choice([*wrong, "malformed", "truncated", "empty"])] if rng.random() < 0.5 else []
            scripts[report] = refused + bad
    return scripts


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_many_reports_with_faults_end_complete_and_correct(engine, tmp_path, count):
    reports = many_reports(count, 1)
    truths = {report: true_answer(report, engine) for report in reports}
    scripts = faults_for(reports, 2)
    with ChatServer(truths, scripts) as server:
        options = LLMOptions(server.url, "m", retries=6, timeout=300, concurrency=8)
        llm = LLMEngine(options, AnswerCache(tmp_path / "c.sqlite"), Verifier(engine))
        seen = []
        aligned = llm.align(reports, lambda done, total: seen.append((done, total)))
        most = max(threading.active_count(), 1)
    assert most < 100
    assert sentences(aligned) == expected(engine, reports)
    assert all(report.unaligned == () for report in aligned)
    assert seen == [(k + 1, count) for k in range(count)]
    assert len(llm.cache) == count
    assert llm.usage.failed == 0
    assert llm.usage.rate_limited == sum(script.count("429") for script in scripts.values())
    bad = sum(any(turn not in ("429", "500") for turn in script) for script in scripts.values())
    assert llm.usage.asked_again == bad
    # each report was paid for once, and once more where its first answer was bad
    assert sum(server.paid.values()) == count + bad
