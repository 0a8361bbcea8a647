"""`carzero align-prompts`: tables in and out, exit codes, sentences; a killed run goes on without paying twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from chat_server import ChatServer, true_answer

from carzero.cli import main
from carzero.prompts.align import aligned_table, write_table

TABLE = (
    "uid,image,findings,impression\n"
    'a,a.png,"Small left effusion is again seen, heart mildly enlarged, no pneumothorax.",Cardiomegaly.\n'
    "b,b.png,The patient is rotated.,\n"
    "c,c.png,,  \n"
    "d,d.png,No effusion.,May be early pneumonia.\n"
)


@pytest.fixture
def reports(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def align(*arguments):
    return main(["align-prompts", *map(str, arguments)])


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_rules_make_a_table_and_a_manifest(reports, tmp_path, capsys, ending):
    out = tmp_path / "new" / f"aligned.{ending}"
    assert align(reports, "--out", out) == 0
    table = pd.read_parquet(out) if ending == "parquet" else pd.read_csv(out)
    if ending == "csv":
        for name in ("texts", "statements", "unaligned"):
            table[name] = table[name].map(json.loads)
    assert table["uid"].tolist() == ["a", "b", "d"]
    assert table["text"].tolist()[2] == "No effusion.\n\nMay be early pneumonia."
    assert table["aligned"].tolist()[0] == (
        "There is small left pleural effusion. There is mild cardiomegaly. There is no pneumothorax. "
        "There is cardiomegaly."
    )
    assert table["status"].tolist() == ["aligned", "set aside", "aligned"]
    assert list(table["unaligned"][1]) == ["The patient is rotated."]
    assert list(table["texts"][2]) == [
        "No effusion.",
        "May be early pneumonia.",
        "There is no pleural effusion.",
        "There is possible pneumonia.",
    ]
    assert list(table["texts"][1]) == ["The patient is rotated."]
    first = table["statements"][0][0]
    assert first == {
        "finding": "pleural effusion", "negated": False, "uncertain": False, "severity": "small", "side": "left",
        "location": None, "change": "stable", "start": 11, "end": 19, "review": "",
        "aligned": "There is small left pleural effusion.",
    }  # fmt: skip
    assert table["text"][0][11:19] == "effusion"
    manifest = json.loads((out.parent / "aligned.manifest.json").read_text())
    assert manifest["left_out_without_text"] == 1
    counts = manifest["counts"]
    assert (counts["reports"], counts["statements"], counts["negated"], counts["uncertain"]) == (3, 6, 2, 1)
    assert {"carzero", "spacy", "negspacy", "openai"} <= set(manifest["versions"])
    said = capsys.readouterr()
    assert "1 of 4 reports have no text and are left out" in said.err
    assert "3 reports (2 aligned, 1 set aside), 6 statements" in said.out
    assert "http" not in said.out + said.err
    assert {p.name for p in out.parent.iterdir()} == {out.name, "aligned.manifest.json"}


def test_what_training_reads_is_chosen(reports, tmp_path):
    texts = {}
    for kind in ("both", "aligned", "raw"):
        assert align(reports, "--out", tmp_path / "o.parquet", "--train-on", kind) == 0
        texts[kind] = [list(t) for t in pd.read_parquet(tmp_path / "o.parquet")["texts"]]
    assert texts["raw"][2] == ["No effusion.", "May be early pneumonia."]
    assert texts["aligned"][2] == ["There is no pleural effusion.", "There is possible pneumonia."]
    assert texts["both"][2] == texts["raw"][2] + texts["aligned"][2]
    # nothing could be aligned: the raw sentences stay
    assert texts["aligned"][1] == ["The patient is rotated."]


def test_the_manifest_reader_of_training_takes_the_output(reports, tmp_path):
    import cv2
    import numpy as np

    from carzero.data.dataset import ManifestDataset

    for name in "abd":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((8, 8), np.uint8))
    for ending in ("parquet", "csv"):
        assert align(reports, "--out", tmp_path / f"o.{ending}") == 0
        pairs = ManifestDataset(tmp_path / f"o.{ending}")
        assert [path.rsplit("/", 1)[1] for path in pairs.images] == ["a.png", "b.png", "d.png"]
        assert pairs.texts[2] == "No effusion.\n\nMay be early pneumonia."


def test_processes_share_the_work(reports, tmp_path):
    big = pd.concat([pd.read_csv(reports, keep_default_na=False)] * 150, ignore_index=True)
    big.to_csv(tmp_path / "big.csv", index=False)
    for workers in (1, 2):
        assert align(tmp_path / "big.csv", "--out", tmp_path / f"{workers}.csv", "--workers", workers) == 0
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_a_table_without_any_statement_reads_like_others(tmp_path):
    from carzero.prompts.statement import AlignedReport

    table = aligned_table(pd.DataFrame({"uid": ["a"]}), ["Hello."], [AlignedReport((), ("Hello.",))])
    write_table(table, tmp_path / "t.parquet")
    again = pd.read_parquet(tmp_path / "t.parquet")
    assert list(again["statements"][0]) == []
    assert again["status"].tolist() == ["set aside"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "x.txt"], r"--out must end in .parquet or .csv, got x.txt"),
        (["--out", "x.csv", "--text", "report"], r"lack the column report; they have uid, image, findings, impression"),
        (["--out", "x.csv", "--text", "image2,report"], "lack the columns image2 and report"),
        (["--out", "x.csv", "--engine", "llm"], "needs --base-url and --model: nothing is sent"),
        (["--out", "x.csv", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["--out", "reports.csv"], "is the table of reports itself"),
        (["--out", "x.csv", "--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_wrong_calls_get_a_sentence(reports, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert align("reports.csv", *arguments) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reports.csv"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.csv", None, "cannot be read: No such file"),
        ("r.xlsx", b"x", "must be a .csv or .parquet"),
        ("r.csv", b"findings\n\xff\xfe", "not UTF-8 text"),
        ("r.csv", b"", "not a valid table"),
        ("r.csv", b"findings,impression\n,\n", "have no text in findings, impression"),
        ("r.csv", b"findings,impression,aligned\na,b,c\n", "have a column 'aligned', which the output adds"),
        ("r.parquet", b"no parquet", "not a valid table"),
    ],
)
def test_wrong_tables_get_a_sentence(tmp_path, capsys, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert align(tmp_path / name, "--out", tmp_path / "out.csv") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def report_table(path, count):
    texts = [f"Small left effusion. No pneumothorax. Examination {k} on 03/14/2019." for k in range(count)]
    pd.DataFrame({"report": texts}).to_csv(path, index=False)
    return texts


def test_llm_says_where_it_sends_and_a_dry_run_sends_nothing(engine, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sesame")
    texts = report_table(tmp_path / "r.csv", 3)
    masked = [text.replace("03/14/2019", "XX/XX/XXXX") for text in texts]
    common = [
        tmp_path / "r.csv",
        "--text",
        "report",
        "--engine",
        "llm",
        "--model",
        "m",
        "--key-env",
        "MY_KEY",
        "--mask",
    ]
    with ChatServer({text: true_answer(text, engine) for text in masked}) as server:
        where = ["--base-url", server.url, "--input-price", 1, "--output-price", 2]
        assert align(*common, *where, "--out", tmp_path / "o.csv", "--dry-run") == 0
        said = capsys.readouterr().err
        assert f"would send the text of 3 reports to {server.url} (model m, with the key of MY_KEY)" in said
        assert "names and numbers blotted" in said
        assert "at the given prices" in said
        assert server.bodies == []
        assert not (tmp_path / "o.csv").exists()
        assert align(*common, *where, "--out", tmp_path / "o.csv") == 0
        said = capsys.readouterr()
    assert f"sending the text of 3 reports to {server.url}" in said.err
    assert "sesame" not in said.err + said.out + (tmp_path / "o.manifest.json").read_text()
    assert "2019" not in json.dumps(server.bodies)
    table = pd.read_csv(tmp_path / "o.csv")
    # the report stays as it was, places in it fit
    assert table["text"].tolist() == texts
    assert table["aligned"].tolist() == ["There is small left pleural effusion. There is no pneumothorax."] * 3
    usage = json.loads((tmp_path / "o.manifest.json").read_text())["usage"]
    assert usage["cost"] == pytest.approx(3 * (100 * 1 + 10 * 2) / 1e6)
    assert (tmp_path / "o.cache.sqlite").stat().st_mode & 0o077 == 0


def test_a_report_without_answer_is_exit_code_one(engine, tmp_path, capsys):
    texts = report_table(tmp_path / "r.csv", 2)
    call = [tmp_path / "r.csv", "--text", "report", "--engine", "llm", "--model", "m", "--retries", 1]
    with ChatServer({t: true_answer(t, engine) for t in texts}, {texts[0]: ["500", "500"]}) as server:
        call += ["--base-url", server.url, "--out", tmp_path / "o.parquet"]
        assert align(*call) == 1
        assert "1 reports got no answer" in capsys.readouterr().out
        assert pd.read_parquet(tmp_path / "o.parquet")["status"].tolist() == ["set aside", "aligned"]
        assert align(*call) == 0
        assert pd.read_parquet(tmp_path / "o.parquet")["status"].tolist() == ["aligned", "aligned"]
        assert server.paid == dict.fromkeys(texts, 1)


def test_a_killed_run_goes_on_without_paying_twice(engine, tmp_path):
    texts, concurrency = report_table(tmp_path / "r.csv", 60), 4
    slow = {text: ["slow"] for text in texts}
    with ChatServer({t: true_answer(t, engine) for t in texts}, slow, seconds=0.05) as server:
        call = [
            sys.executable,
            "-m",
            "carzero",
            "align-prompts",
            tmp_path / "r.csv",
            "--text",
            "report",
            "--engine",
            "llm",
        ]
        call += ["--model", "m", "--base-url", server.url, "--out", tmp_path / "o.csv", "--concurrency", concurrency]
        call = list(map(str, call))
        process = subprocess.Popen(call, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 240
        while sum(server.paid.values()) < 20 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed_at = sum(server.paid.values())
        assert not (tmp_path / "o.csv").exists()
        done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=240)
        paid = sum(server.paid.values())
    assert 20 <= killed_at < 60
    # only answers that were under way when it was killed are paid for again
    assert 60 <= paid <= 60 + concurrency
    kept = int(re.search(r"(\d+) answers from the cache", done.stdout)[1])
    assert kept >= killed_at - concurrency
    table = pd.read_csv(tmp_path / "o.csv")
    assert table["report"].tolist() == texts
    assert table["aligned"].tolist() == ["There is small left pleural effusion. There is no pneumothorax."] * 60
