"""``carzero align-prompts``: reports as standard sentences, by rules here or by a language model elsewhere."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carzero.errors import UserError

if TYPE_CHECKING:
    from carzero.prompts.llm import LLMEngine, LLMOptions
    from carzero.prompts.statement import AlignedReport


def configure(parser: argparse.ArgumentParser) -> None:
    from carzero.prompts.align import TRAIN_ON

    parser.add_argument("reports", metavar="REPORTS", help=".csv or .parquet table of reports")
    parser.add_argument(
        "--text",
        default="findings,impression",
        metavar="A,B",
        help="columns that make up a report (default: %(default)s)",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help=".parquet or .csv table to write")
    parser.add_argument(
        "--engine", choices=("rules", "llm"), default="rules", help="default: rules, which sends nothing"
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes of the rules engine (default: 1)"
    )
    parser.add_argument(
        "--train-on",
        choices=TRAIN_ON,
        default="both",
        help="what the column texts holds for carzero train: raw and aligned sentences, or one kind (default: both)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="align the first N reports only")
    llm = parser.add_argument_group("engine llm")
    llm.add_argument("--base-url", metavar="URL", help="OpenAI-compatible endpoint, such as http://localhost:8000/v1")
    llm.add_argument("--model", help="name of the model there")
    llm.add_argument(
        "--key-env",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable with the key (default: %(default)s)",
    )
    llm.add_argument("--prompt", metavar="FILE", help="instruction and examples (default: those of the package)")
    llm.add_argument("--mask", action="store_true", help="blot dates, names and numbers before anything is sent")
    llm.add_argument(
        "--dry-run", action="store_true", help="say what would be sent and its estimated cost, send nothing"
    )
    llm.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests at a time (default: 8)")
    llm.add_argument("--retries", type=int, default=6, metavar="N", help="further attempts of a request (default: 6)")
    llm.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for a request (default: 60)")
    llm.add_argument("--max-tokens", type=int, default=2000, metavar="N", help="of an answer (default: 2000)")
    llm.add_argument(
        "--structured",
        choices=("schema", "json", "off"),
        default="schema",
        help="how JSON is asked for; json or off for servers without JSON schemas (default: schema)",
    )
    llm.add_argument("--input-price", type=float, default=0.0, metavar="P", help="of a million tokens read")
    llm.add_argument("--output-price", type=float, default=0.0, metavar="P", help="of a million tokens written")
    llm.add_argument("--cache", metavar="FILE", help="answers paid for (default: OUT with the ending .cache.sqlite)")


def run(args: argparse.Namespace) -> int:
    """Align and write; returns the exit code (1: some reports got no answer, 130: interrupted)."""
    try:
        return _align(args)
    except KeyboardInterrupt:
        where = (
            "what was answered is in the cache; run it again to go on"
            if args.engine == "llm"
            else "nothing was written"
        )
        print(f"carzero align-prompts: interrupted; {where}.", file=sys.stderr)
        return 130


def _align(args: argparse.Namespace) -> int:
    # after the parser, so that --help needs no extra
    from carzero.prompts.align import aligned_table, counts_of, file_digest, read_reports, report_text, write_table

    start, out = time.time(), Path(args.out)
    _check(args, out)
    columns = [name.strip() for name in args.text.split(",") if name.strip()]
    table = read_reports(args.reports, columns).head(args.limit)
    texts = [report_text(row, columns) for row in table.to_dict("records")]
    full = [bool(text) for text in texts]
    table, texts = table[full], [text for text in texts if text]
    if not texts:
        raise UserError(f"The reports {args.reports} have no text in {', '.join(columns)}.")
    if len(texts) < len(full):
        _say(f"{len(full) - len(texts)} of {len(full)} reports have no text and are left out.")
    manifest: dict[str, Any] = {
        "command": vars(args) | {"command": "align-prompts"},
        "input_sha256": file_digest(args.reports),
        "left_out_without_text": len(full) - len(texts),
    }
    found = _by_rules(texts, args.workers) if args.engine == "rules" else _by_llm(texts, args, out)
    if found is None:
        return 0
    aligned, more = found
    manifest |= more
    done = aligned_table(table, texts, aligned, train_on=args.train_on)
    write_table(done, out)
    manifest |= {"counts": counts_of(done), "seconds": round(time.time() - start, 1), "versions": _versions()}
    manifest["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start))
    beside = out.with_name(f"{out.stem}.manifest.json")
    beside.write_text(json.dumps(manifest, indent=1, default=str) + "\n", encoding="utf-8")
    _summary(out, beside, manifest)
    return 1 if manifest.get("usage", {}).get("failed") else 0


def _check(args: argparse.Namespace, out: Path) -> None:
    from carzero.prompts.align import FORMATS

    if out.suffix.lower() not in FORMATS:
        raise UserError(f"--out must end in {' or '.join(FORMATS)}, got {out}.")
    if Path(args.reports).resolve() == out.resolve():
        raise UserError(f"--out {out} is the table of reports itself: name another file.")
    for name, least in (("workers", 1), ("limit", 1), ("concurrency", 1), ("retries", 0), ("max_tokens", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {value}.")
    if args.engine == "llm" and not (args.base_url and args.model):
        raise UserError("The engine llm needs --base-url and --model: nothing is sent anywhere unless you say where.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}.") from None


def _by_rules(texts: list[str], workers: int) -> tuple[list[AlignedReport], dict[str, Any]]:
    from carzero.prompts.align import align_rules, file_digest
    from carzero.prompts.lexicon import PATH
    from carzero.prompts.rules import VERSION

    aligned = list(_shown(align_rules(texts, workers=workers), len(texts)))
    return aligned, {"rules_version": VERSION, "lexicon_sha256": file_digest(PATH)}


def _by_llm(texts: list[str], args: argparse.Namespace, out: Path) -> tuple[list[AlignedReport], dict[str, Any]] | None:
    """None where nothing was to be sent."""
    from carzero.prompts.cache import AnswerCache
    from carzero.prompts.llm import PROMPT, LLMEngine, LLMOptions
    from carzero.prompts.mask import mask

    key = os.environ.get(args.key_env, "")
    options = LLMOptions(
        base_url=args.base_url,
        model=args.model,
        api_key=key or "none",
        concurrency=args.concurrency,
        retries=args.retries,
        timeout=args.timeout,
        max_tokens=args.max_tokens,
        structured=args.structured,
        prompt=Path(args.prompt) if args.prompt else PROMPT,
        input_price=args.input_price,
        output_price=args.output_price,
    )
    cache = AnswerCache(args.cache or out.with_suffix(".cache.sqlite"))
    engine = LLMEngine(options, cache)
    sent = [mask(text) for text in texts] if args.mask else texts
    estimate = engine.estimate(sent)
    _announce(options, estimate, args, key)
    if args.dry_run:
        cache.close()
        return None
    try:
        aligned = engine.align(sent, _progress(engine))
    finally:
        cache.close()
    usage = vars(engine.usage)
    return aligned, {"usage": usage, "prompt_sha256": engine.prompt_digest, "masked": args.mask}


def _announce(options: LLMOptions, estimate: dict[str, float], args: argparse.Namespace, key: str) -> None:
    count, cost = int(estimate["requests"]), estimate["cost"]
    price = f", {cost:.2f} at the given prices" if cost else ""
    _say(
        f"{'would send' if args.dry_run else 'sending'} the text of {count} reports to {options.base_url} (model "
        f"{options.model}, {'with the key of ' + args.key_env if key else 'without a key'}), dates, names and numbers "
        f"{'blotted' if args.mask else 'as they are'}. Estimate: {estimate['input_tokens']:,.0f} tokens read, "
        f"{estimate['output_tokens']:,.0f} written{price}; what does not agree with its report is asked for once more."
    )


def _progress(engine: LLMEngine) -> Any:
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            usage = engine.usage
            _say(f"{done} of {total} reports, {usage.cost:.2f} spent, {usage.rate_limited} times rate-limited")

    return show


def _shown(reports: Any, total: int) -> Any:
    last = time.monotonic()
    for done, report in enumerate(reports, 1):
        if time.monotonic() - last > 10:
            last = time.monotonic()
            _say(f"{done} of {total} reports")
        yield report


def _versions() -> dict[str, str]:
    from carzero import __version__

    found = {"carzero": __version__, "python": sys.version.split()[0]}
    for name in ("spacy", "negspacy", "openai", "pandas"):
        found[name] = importlib.metadata.version(name)
    return found


def _summary(out: Path, beside: Path, manifest: dict[str, Any]) -> None:
    counts = manifest["counts"]
    status = ", ".join(f"{number} {name}" for name, number in counts["status"].items())
    print(
        f"{out}: {counts['reports']} reports ({status}), {counts['statements']} statements, {counts['negated']} "
        f"of them denied and {counts['uncertain']} uncertain; {counts['unaligned']} sentences without a finding. "
        f"Versions and counts: {beside}."
    )
    if usage := manifest.get("usage"):
        print(
            f"{usage['asked']} requests, {usage['from_cache']} answers from the cache, {usage['input_tokens']} tokens "
            f"read, {usage['output_tokens']} written, cost {usage['cost']:.4f} at the given prices; {usage['failed']} "
            "reports got no answer and are asked for again by the next run."
        )


def _say(sentence: str) -> None:
    print(f"carzero align-prompts: {sentence}", file=sys.stderr, flush=True)
