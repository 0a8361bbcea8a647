"""The files that `carzero export` writes, run in their own runtimes against the model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from published_model import perturbed

from carzero import CARZero, CARZeroConfig
from carzero.cli import main
from carzero.errors import UserError
from carzero.models import export as exporting
from carzero.models.export import export
from carzero.models.tokenizer import load_tokenizer
from carzero.models.towers import ImageTower, PairScores, TextTower


@pytest.fixture(scope="module")
def small(tokenizer) -> CARZero:
    """With the convolutional stem, which the demo's model has and which asks for a memory format."""
    torch.manual_seed(0)
    config = CARZeroConfig.tiny(vocab_size=len(tokenizer), width=32, heads=2, max_tokens=64)
    config = dataclasses.replace(config, image=dataclasses.replace(config.image, stem="conv"))
    return perturbed(CARZero(config, tokenizer)).eval()


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory) -> Path:
    """Both formats of one model, by the command."""
    root = tmp_path_factory.mktemp("export")
    small.save_pretrained(root / "model")
    assert main(["export", str(root / "model"), "--out", str(root / "files")]) == 0
    return root / "files"


def published_inputs(model: CARZero, texts) -> tuple:
    tokens = model.text_encoder.tokenise(texts)
    return tokens.input_ids, tokens.attention_mask


@pytest.mark.parametrize("rows", ["global+local", "local", "global"])
def test_towers_are_the_models_encoders(rows, tokenizer, pixels, texts):
    torch.manual_seed(0)
    config = CARZeroConfig.tiny(vocab_size=len(tokenizer), max_tokens=64, memory_rows=rows)
    model = perturbed(CARZero(config, tokenizer)).double().eval()
    images, encoded = model.encode_images(pixels.double()), model.encode_texts(texts)
    image = ImageTower(model)(pixels.double())
    text = TextTower(model)(*published_inputs(model, texts))
    assert torch.equal(image[0], images.memory)
    assert torch.equal(image[1], images.query)
    present = encoded.memory.shape[1]
    assert torch.equal(text[0][:, :present], encoded.memory)
    assert torch.equal(text[1], encoded.query)
    if encoded.row_count is not None:
        assert torch.equal(text[2][:, :present], encoded.row_count)
    # what the fixed shape adds is absent
    assert not text[2][:, present:].any()
    want = model.similarity(pixels.double(), texts)
    assert torch.allclose(PairScores(model)(*image, *text), want, rtol=1e-10, atol=1e-12)


def test_onnx_alone_scores_like_the_model(small, folder, pixels):
    """Tokenizer files, onnxruntime and numpy, from strings to scores; one image, one text, the longest text."""
    import onnxruntime

    tokenizer = load_tokenizer(folder / "tokenizer")
    described = json.loads((folder / "export.json").read_text())

    def run(name, *inputs):
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        part = described["parts"][name]
        assert [i.name for i in session.get_inputs()] == part["inputs"]
        return session.run(part["outputs"], dict(zip(part["inputs"], inputs, strict=True)))

    long = " ".join(["effusion"] * 200)
    for images, texts in (
        (1, ["there is pneumonia"]),
        (3, ["there is effusion", "there is no pneumonia", "lung", long]),
    ):
        ids = [tokenizer(text, truncation=False, verbose=False)["input_ids"] for text in texts]
        limit = described["texts"]["max_tokens"]
        ids = [i if len(i) <= limit else [*i[: limit - 1], i[-1]] for i in ids]
        widest = max(map(len, ids))
        table = np.array([i + [tokenizer.pad_token_id] * (widest - len(i)) for i in ids], np.int64)
        mask = np.array([[1] * len(i) + [0] * (widest - len(i)) for i in ids], np.int64)
        got = run("scores", *run("image", pixels[:images].numpy()), *run("text", table, mask))[0]
        with pytest.warns(UserWarning, match="cut to 64") if images == 3 else torch.no_grad():
            want = small.similarity(pixels[:images], texts).numpy()
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_exported_programs_need_no_carzero(small, folder, pixels, texts):
    """In an interpreter where `import carzero` fails, and equal to the last bit to the towers."""
    text = published_inputs(small, texts)
    torch.save({"image": (pixels,), "text": text}, folder / "inputs.pt")
    code = f"""
import sys, torch
sys.modules["carzero"] = None
folder, inputs = {str(folder)!r}, torch.load({str(folder / "inputs.pt")!r})
run = {{name: torch.export.load(f"{{folder}}/{{name}}.pt2").module() for name in ("image", "text", "scores")}}
with torch.no_grad():
    image, text = run["image"](*inputs["image"]), run["text"](*inputs["text"])
    scores = run["scores"](*image, *text)
torch.save([image, text, scores], f"{{folder}}/outputs.pt")
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=folder)
    image, texts_out, scores = torch.load(folder / "outputs.pt")
    with torch.no_grad():
        for got, want in zip((*image, *texts_out), (*ImageTower(small)(pixels), *TextTower(small)(*text)), strict=True):
            assert torch.equal(got, want)
    assert torch.allclose(scores, small.similarity(pixels, texts), rtol=1e-5, atol=1e-6)


def test_the_opset_is_the_stated_one_and_nothing_foreign_is_in_it(folder):
    import onnx

    for name in ("image", "text", "scores"):
        model = onnx.load(folder / f"{name}.onnx")
        onnx.checker.check_model(model)
        assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", exporting.OPSET)]
        assert {node.domain for node in model.graph.node} == {""}
    described = json.loads((folder / "export.json").read_text())
    assert described["opset"] == exporting.OPSET
    assert described["tensors"]["image_memory"] == "float32 [images, 17, 32]"
    named = {name for part in described["parts"].values() for name in (*part["inputs"], *part["outputs"])}
    assert named == set(described["tensors"])


def test_a_file_that_differs_is_an_error(small, tmp_path, monkeypatch):
    """A tower whose written form is another function must not be left unnoticed."""
    write = exporting._write

    def wrong(program, part, path):
        run = write(program, part, path)
        return lambda *inputs: [value * 1.001 for value in run(*inputs)]

    monkeypatch.setattr(exporting, "_write", wrong)
    with pytest.raises(RuntimeError, match=r"image\.pt2 differs from the model by"):
        export(small, tmp_path, ["torch"])
    monkeypatch.setattr(exporting, "_write", lambda *a: lambda *i: [v * float("nan") for v in write(*a)(*i)])
    with pytest.raises(RuntimeError, match="differs from the model by nan"):
        export(small, tmp_path, ["torch"])


def test_what_cannot_be_exported_is_said(small, tokenizer, tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(small.config, similarity="cosine")
    with pytest.raises(UserError, match="this one has 'cosine'"):
        export(CARZero(config, tokenizer), tmp_path, ["torch"])
    with pytest.raises(UserError, match="opened without a tokenizer"):
        export(CARZero(small.config), tmp_path, ["torch"])
    with pytest.raises(UserError, match=r"must be float32, got torch\.float64"):
        export(CARZero(small.config, tokenizer).double(), tmp_path)
    with pytest.raises(UserError, match="formats must be among"):
        export(small, tmp_path, ["tflite"])  # type: ignore[list-item]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime, which is not installed; pip install 'carzero\[export\]'"):
        export(small, tmp_path)
    assert main(["export", str(tmp_path / "nothing"), "--out", str(tmp_path)]) == 2
    assert "there is no folder or file" in capsys.readouterr().err
