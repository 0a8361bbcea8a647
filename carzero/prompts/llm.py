"""The engine `llm`: any OpenAI-compatible endpoint, every answer verified, nothing paid for twice."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carzero.errors import UserError
from carzero.prompts.cache import AnswerCache, key_of
from carzero.prompts.rules import VERSION
from carzero.prompts.statement import AlignedReport, Statement
from carzero.prompts.verify import PLACE_NAMES, SEVERITY_NAMES, Answer, Verdict, Verifier

if TYPE_CHECKING:
    import openai

#: the prompt that comes with the package, with examples
PROMPT = Path(__file__).with_name("llm_prompt.txt")
#: so many requests in a row that no server answered end the run
MOST_FAILURES = 20
#: of English text, for estimates
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class LLMOptions:
    """Where and how to ask.

    Args:
        base_url: of the endpoint, up to ``/v1``.
        model: its name there.
        api_key: sent as a bearer token.
        concurrency: requests under way at a time.
        retries: further attempts of a request that met a rate limit, a server error or no answer, with growing random
            pauses, or those that the server names.
        timeout: seconds that a request may take.
        max_tokens: that an answer may have.
        structured: how the answer's form is asked for: by ``schema``, as ``json``, or ``off`` where a server knows
            neither.
        prompt: file with the instruction and examples.
        input_price, output_price: for a million tokens.
    """

    base_url: str
    model: str
    api_key: str = "none"
    concurrency: int = 8
    retries: int = 6
    timeout: float = 60.0
    max_tokens: int = 2000
    structured: str = "schema"
    prompt: Path = PROMPT
    input_price: float = 0.0
    output_price: float = 0.0


@dataclass
class Usage:
    """What a run took: answers from the server and from the cache, tokens that the server counted, their price."""

    asked: int = 0
    asked_again: int = 0
    from_cache: int = 0
    rate_limited: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    #: reports for which no answer could be had; the next run asks for them again
    failed: int = 0


def read_prompt(path: Path) -> list[dict[str, str]]:
    """The messages of a prompt file: parts that begin with ``### system``, ``### user`` or ``### assistant``.

    Raises:
        UserError: it cannot be read, or does not begin with the system part, or its examples do not alternate.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The prompt {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    parts = re.split(r"^### (system|user|assistant)[ \t]*\n", text, flags=re.M)
    messages = [
        {
            "role": role,
            "content": content.strip().replace("{places}", PLACE_NAMES).replace("{severities}", SEVERITY_NAMES),
        }
        for role, content in zip(parts[1::2], parts[2::2])
    ]
    wanted = ["system", *["user", "assistant"] * ((len(messages) - 1) // 2)]
    if parts[0].strip() or [m["role"] for m in messages] != wanted:
        raise UserError(
            f"The prompt {path} must consist of '### system', then pairs of '### user' and '### assistant', got "
            f"{', '.join(m['role'] for m in messages) or 'none of these'}."
        )
    return messages


@dataclass
class LLMEngine:
    """Aligns reports by a language model; what it says is verified and what fails is asked once more.

    Args:
        options: the endpoint and how to ask it.
        cache: answers of earlier runs, and where new ones go.
        verifier: what holds an answer against its report.
    """

    options: LLMOptions
    cache: AnswerCache
    verifier: Verifier = field(default_factory=Verifier)

    def __post_init__(self) -> None:
        self.messages = read_prompt(self.options.prompt)
        self.usage = Usage()
        prompt = "\n".join(m["content"] for m in self.messages)
        self.prompt_digest = hashlib.sha256(prompt.encode()).hexdigest()
        self._failures, self._resume_at = 0, 0.0

    def key(self, text: str) -> str:
        """The cache's key of a report."""
        form = f"{self.options.structured}/{self.options.max_tokens}"
        return key_of(text, self.prompt_digest, self.options.model, f"{VERSION}/{form}")

    def estimate(self, texts: Iterable[str]) -> dict[str, float]:
        """What asking for these reports would take, of tokens, and cost; those in the cache and repeats are free."""
        todo = {text for text in texts if self.cache.get(self.key(text)) is None}
        prompt = sum(len(m["content"]) for m in self.messages)
        read = sum(prompt + len(text) for text in todo) / CHARACTERS_PER_TOKEN
        # an example's answer is some four times as long as its report
        written = sum(4 * len(text) for text in todo) / CHARACTERS_PER_TOKEN
        return {
            "requests": len(todo),
            "input_tokens": read,
            "output_tokens": written,
            "cost": self._price(read, written),
        }

    def align(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> list[AlignedReport]:
        """The aligned reports, in order; equal ones are asked for once.

        Raises:
            UserError: the server refuses (key, model, form of the request), or none answers. What was answered is in
                the cache, and the next run goes on from there.
        """
        return asyncio.run(self._align(texts, progress))

    async def _align(self, texts: Sequence[str], progress: Callable[[int, int], None] | None) -> list[AlignedReport]:
        waiting = iter(dict.fromkeys(texts))
        total, results = len(set(texts)), {}
        async with self._client() as client:

            async def work() -> None:
                for text in waiting:
                    results[text] = await self._report(client, text)
                    if progress is not None:
                        progress(len(results), total)

            tasks = [asyncio.create_task(work()) for _ in range(max(1, self.options.concurrency))]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return [results[text] for text in texts]

    async def _report(self, client: openai.AsyncOpenAI, text: str) -> AlignedReport:
        stored = self.cache.get(self.key(text))
        if stored is not None:
            self.usage.from_cache += 1
            return _from_json(stored)
        try:
            report = await self._ask_twice(client, text)
        except _Unanswered as error:
            self.usage.failed += 1
            return AlignedReport((), (f"No answer: {error}",))
        self.cache.put(
            self.key(text), {"statements": [vars(s) for s in report.statements], "unaligned": report.unaligned}
        )
        return report

    async def _ask_twice(self, client: openai.AsyncOpenAI, text: str) -> AlignedReport:
        messages = [*self.messages, {"role": "user", "content": text}]
        content, verdict = await self._ask(client, messages, text)
        if verdict.objections:
            self.usage.asked_again += 1
            objections = "\n".join(f"- {objection}" for objection in verdict.objections)
            again = f"This does not agree with the report:\n{objections}\nAnswer again for the same report, whole."
            messages += [{"role": "assistant", "content": content}, {"role": "user", "content": again}]
            _, second = await self._ask(client, messages, text)
            # the better of the two: a second answer may be worse
            verdict = min((second, verdict), key=lambda v: (len(v.objections), -len(v.statements)))
        return AlignedReport(verdict.statements, tuple(f"Set aside: {objection}" for objection in verdict.objections))

    async def _ask(self, client: openai.AsyncOpenAI, messages: list[dict[str, str]], text: str) -> tuple[str, Verdict]:
        """One answer and what of it stands."""
        import pydantic

        choice = await self._complete(client, messages)
        content = choice.message.content or ""
        if choice.finish_reason == "length":
            return content[-200:], Verdict((), ("the answer was cut off at its longest.",))
        try:
            answer = Answer.model_validate_json(_without_fence(content))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the answer"
            return content[:2000], Verdict((), (f"the answer is not JSON of the schema: {where}: {first['msg']}.",))
        return content, self.verifier(answer, text)

    async def _complete(self, client: openai.AsyncOpenAI, messages: list[dict[str, str]]) -> Any:
        import openai

        options = self.options
        forms: dict[str, dict[str, Any]] = {
            "schema": {
                "type": "json_schema",
                "json_schema": {"name": "statements", "schema": Answer.model_json_schema(), "strict": True},
            },
            "json": {"type": "json_object"},
        }
        extra: Any = {"response_format": forms[options.structured]} if options.structured in forms else {}
        asking: Any = messages
        try:
            self.usage.asked += 1
            completion = await client.chat.completions.create(
                model=options.model, messages=asking, temperature=0, max_tokens=options.max_tokens, **extra
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError, openai.BadRequestError,
                openai.UnprocessableEntityError) as error:  # fmt: skip
            raise UserError(f"align-prompts: {options.base_url} refuses the request: {error}.") from None
        except openai.OpenAIError as error:
            self._failures += 1
            if self._failures >= MOST_FAILURES:
                raise UserError(
                    f"align-prompts: {MOST_FAILURES} requests in a row to {options.base_url} failed, the last with: "
                    f"{error} "
                    "What was answered is in the cache; run the same command again to go on."
                ) from None
            raise _Unanswered(str(error)) from None
        self._failures = 0
        if completion.usage is not None:
            read, written = completion.usage.prompt_tokens, completion.usage.completion_tokens
            self.usage.input_tokens += read
            self.usage.output_tokens += written
            self.usage.cost += self._price(read, written)
        if not completion.choices:
            raise _Unanswered("the server's answer holds no choice.")
        return completion.choices[0]

    def _price(self, read: float, written: float) -> float:
        return (read * self.options.input_price + written * self.options.output_price) / 1e6

    def _client(self) -> openai.AsyncOpenAI:
        try:
            import openai
        except ImportError as error:
            raise UserError(f"The engine llm needs openai ({error}): pip install 'carzero[prompts]'.") from None

        async def wait(request: Any) -> None:
            """Hold requests back while the server's rate limit lasts."""
            pause = self._resume_at - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)

        async def heed(response: Any) -> None:
            if response.status_code == 429:
                self.usage.rate_limited += 1
                self._resume_at = max(self._resume_at, time.monotonic() + _retry_after(response.headers))

        http = openai.DefaultAsyncHttpxClient(
            event_hooks={"request": [wait], "response": [heed]}, follow_redirects=False
        )
        return openai.AsyncOpenAI(
            base_url=self.options.base_url,
            api_key=self.options.api_key,
            timeout=self.options.timeout,
            max_retries=self.options.retries,
            http_client=http,
        )


class _Unanswered(Exception):
    """A request that got no answer after all attempts."""


def _retry_after(headers: Any) -> float:
    """Seconds that a rate-limited answer asks to wait; a second where it does not say."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return min(60.0, max(0.0, float(headers[name]) * unit))
        except (KeyError, ValueError):
            continue
    return 1.0


def _without_fence(content: str) -> str:
    """The JSON of an answer that stands between Markdown fences."""
    match = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", content, re.S)
    return match[1] if match else content


def _from_json(stored: dict[str, Any]) -> AlignedReport:
    return AlignedReport(tuple(Statement(**s) for s in stored["statements"]), tuple(stored["unaligned"]))
