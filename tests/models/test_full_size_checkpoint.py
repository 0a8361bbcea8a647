"""A full-size checkpoint in the published layout: written, opened, the same scores; seconds and memory of using it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published_model import checkpoint_state

from carzero import CARZero, CARZeroConfig
from carzero.models.tokenizer import word_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc"),
]

PROMPTS = ["There is pneumonia", "There is pleural effusion", "There is no finding", "There is cardiomegaly"]

# a process of its own, so that its peak memory is that of opening and classifying alone
USE = r"""
import json, re, sys, time
import carzero, carzero.models.checkpoint
import torch, timm, transformers.models.bert.modeling_bert
from carzero.ops import choose
# not getrusage: its peak is inherited from the process that starts this one
def peak(): return 1024 * int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
checkpoint, tokenizer, pixels, out = sys.argv[1:5]
imported, start = peak(), time.perf_counter()
model = carzero.load(checkpoint, tokenizer=tokenizer)
loaded, seconds_load = peak(), time.perf_counter() - start
pixels, prompts = torch.load(pixels)
start = time.perf_counter()
bank = model.text_bank(prompts)
seconds_texts = time.perf_counter() - start
start = time.perf_counter()
scores = model.similarity(pixels, bank)
seconds_images = time.perf_counter() - start
torch.save(scores, out)
print(json.dumps(dict(
    seconds_load=seconds_load, seconds_texts=seconds_texts, seconds_images=seconds_images,
    backend=choose("auto", device=model.device, dtype=model.dtype, width=768, heads=4)[0],
    rss_after_imports=imported, rss_after_load=loaded, rss_peak=peak(), threads=torch.get_num_threads(),
)))
"""


def test_full_size(tmp_path):
    """Set CARZERO_RECORD to a path to keep the figures as JSON."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(PROMPTS)
    model = CARZero(CARZeroConfig.carzero(), tokenizer).eval()
    checkpoint = tmp_path / "published.ckpt"
    torch.save({"epoch": 14, "state_dict": checkpoint_state(model)}, checkpoint)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    pixels = torch.randn(4, 3, 224, 224)
    torch.save((pixels, PROMPTS), tmp_path / "pixels.pt")
    want = model.similarity(pixels, model.text_bank(PROMPTS))
    values = sum(p.numel() for p in model.parameters())
    assert values == pytest.approx(211_000_000, rel=0.02)
    del model

    paths = [str(tmp_path / name) for name in ("published.ckpt", "tokenizer", "pixels.pt", "scores.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = subprocess.run(
        [sys.executable, "-c", USE, *paths], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert torch.equal(torch.load(tmp_path / "scores.pt"), want), "no cast, so every bit is the same"
    assert want.std() > 0

    figures = json.loads(run.stdout.splitlines()[-1])
    taken = figures["rss_peak"] - figures["rss_after_imports"]
    # the weights once, not twice: opening maps the file, and what is dropped in it is never read
    assert taken < 1.5 * 4 * values
    if target := os.environ.get("CARZERO_RECORD"):
        record = {
            "what": "published layout, ViT-B/16 + BERT-base (30,522 word pieces) + 4-layer decoder, random weights",
            "command": f"CARZERO_RECORD={target} python -m pytest tests/models/test_full_size_checkpoint.py",
            "checkpoint_bytes": checkpoint.stat().st_size,
            "values": values,
            "images": len(pixels),
            "prompts": len(PROMPTS),
            **{name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()},
            "machine": _machine(),
            "torch": torch.__version__,
            "commit": _commit(),
        }
        Path(target).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return f"{cpu}, {os.cpu_count()} CPUs"


def _commit() -> str:
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or "unknown"
