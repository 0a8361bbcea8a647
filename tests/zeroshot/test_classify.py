"""ZeroShotClassifier gives the model's own scores, whatever the batching, and loses no image."""

from __future__ import annotations

import dataclasses
import os

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from carzero.data.files import list_images
from carzero.data.images import ImageProcessor
from carzero.data.phantom import draw
from carzero.errors import UserError
from carzero.models.carzero import CARZero
from carzero.models.config import CARZeroConfig
from carzero.models.tokenizer import word_tokenizer
from carzero.zeroshot import classify, reading
from carzero.zeroshot.classify import ZeroShotClassifier, choose_dtype

PROMPTS = {
    "effusion": ["there is effusion", "there is a large left pleural effusion in the lung"],
    "mass": "there is a mass",
    "none": ("no finding", "there is no effusion", "normal"),
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    tokenizer = word_tokenizer(
        text for value in PROMPTS.values() for text in ([value] if isinstance(value, str) else value)
    )
    model = CARZero(CARZeroConfig.tiny(vocab_size=len(tokenizer)), tokenizer)
    with torch.no_grad():
        # the published initialisation is so small that all scores of a new model are nearly equal
        for parameter in model.decoder.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model


@pytest.fixture
def folder(tmp_path):
    for number in range(7):
        grey = np.random.default_rng(number).integers(0, 256, (70 + 9 * number, 80), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), cv2.GaussianBlur(grey, (0, 0), 1 + number))
    return tmp_path


#: Of the largest score: some 25 roundings of float32 (1.2e-7), measured 5e-7.
TOLERANCE = 3e-6


def near(scores, expected):
    return np.abs(scores - expected).max() < TOLERANCE * np.abs(expected).max()


def one_by_one(model, paths, pool):
    """The scores by the plainest way: one image and one prompt at a time through the oracle."""
    double = CARZero(model.config, model.tokenizer).double().eval()
    double.load_state_dict(model.state_dict())
    rows = []
    for path in paths:
        pixels = ImageProcessor(model.config.image.image_size)(path).double()[None]
        row = []
        for texts in PROMPTS.values():
            texts = [texts] if isinstance(texts, str) else texts
            row.append(pool([double.similarity(pixels, [text], backend="reference").item() for text in texts]))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("pool", "plain"), [("mean", np.mean), ("max", np.max)])
def test_scores_are_those_of_one_image_and_one_prompt_at_a_time(model, folder, pool, plain):
    paths = sorted(folder.glob("*.png"))
    expected = one_by_one(model, paths, plain)
    table = ZeroShotClassifier(model, PROMPTS, pool=pool, batch_size=3, dtype=torch.float32).predict(paths)
    assert list(table.columns) == ["image", *PROMPTS]
    assert table["image"].tolist() == [str(path) for path in paths]
    scores = table[list(PROMPTS)].to_numpy()
    assert scores.dtype == np.float32
    # float32 against float64 through two encoders and the decoder; images differ by more than 1000 times that
    assert near(scores, expected)
    assert np.ptp(expected, axis=0).min() > 1000 * TOLERANCE * np.abs(expected).max()


def test_batches_and_worker_processes_change_nothing(model, folder):
    tables = [
        ZeroShotClassifier(model, PROMPTS, batch_size=size, workers=workers, dtype=torch.float32).predict(folder)
        for size, workers in [(16, 0), (1, 0), (4, 2)]
    ]
    for table in tables[1:]:
        assert table["image"].tolist() == tables[0]["image"].tolist() == [f"{n}.png" for n in range(7)]
        # sums in another order
        assert near(table.iloc[:, 1:].to_numpy(), tables[0].iloc[:, 1:].to_numpy())


def test_paths_pillow_images_arrays_and_listed_files_score_alike(model, folder):
    classifier = ZeroShotClassifier(model, PROMPTS)
    path = folder / "0.png"
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    table = classifier.predict([path, grey, Image.fromarray(grey), *list_images([path])])
    assert table["image"].tolist() == [str(path), "image 1", "image 2", "0.png"]
    scores = table.iloc[:, 1:].to_numpy()
    assert near(scores, scores[:1])
    assert classifier.predict(str(path))["image"].tolist() == ["0.png"]


def test_prompts_are_encoded_and_projected_once(model, folder, monkeypatch):
    calls = {"encode_texts": 0, "text_bank": 0}
    for name in calls:
        original = getattr(CARZero, name)

        def counted(self, *args, _name=name, _original=original, **kwargs):
            calls[_name] += 1
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(CARZero, name, counted)
    classifier = ZeroShotClassifier(model, PROMPTS, batch_size=2)
    classifier.predict(folder)
    classifier.predict(folder)
    assert calls == {"encode_texts": 1, "text_bank": 1}


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_listed_and_the_rest_scored(model, folder, workers):
    whole = ZeroShotClassifier(model, PROMPTS).predict(folder).set_index("image")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:500])
    (folder / "5.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    (folder / "x.dcm").write_text("no image either")
    classifier = ZeroShotClassifier(model, PROMPTS, batch_size=2, workers=workers)
    seen = []
    table = classifier.predict(folder, progress=lambda done, total: seen.append((done, total)))
    assert table["image"].tolist() == ["0.png", "1.png", "3.png", "4.png", "6.png"]
    assert near(table.iloc[:, 1:].to_numpy(), whole.loc[table["image"]].to_numpy())
    assert classifier.failures["image"].tolist() == ["2.png", "5.png", "notes.txt", "x.dcm"]
    reasons = classifier.failures["reason"].tolist()
    assert "cut short" in reasons[0]
    assert "empty" in reasons[1]
    assert "not a PNG, JPEG or DICOM" in reasons[2]
    assert "DICOM" in reasons[3]
    assert (seen[0], seen[-1]) == ((0, 9), (9, 9))


def test_nothing_readable_is_an_empty_table_with_all_columns(model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    classifier = ZeroShotClassifier(model, PROMPTS)
    table = classifier.predict(tmp_path)
    assert list(table.columns) == ["image", *PROMPTS]
    assert (len(table), len(classifier.failures)) == (0, 1)


def test_strict_raises_at_the_first(model, folder):
    (folder / "3.png").write_bytes(b"")
    (folder / "4.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^3\.png is empty"):
        ZeroShotClassifier(model, PROMPTS, batch_size=2).predict(folder, strict=True)


def test_scores_that_are_not_finite_are_failures(model, folder, monkeypatch):
    classifier = ZeroShotClassifier(model, PROMPTS, batch_size=4)
    score = classifier.score

    def spoiled(pixels):
        logits = score(pixels)
        logits[1, 2] = float("nan")
        return logits

    monkeypatch.setattr(classifier, "score", spoiled)
    assert classifier.predict(folder)["image"].tolist() == ["0.png", "2.png", "3.png", "4.png", "6.png"]
    assert classifier.failures["image"].tolist() == ["1.png", "5.png"]
    assert set(classifier.failures["reason"]) == {"has scores that are not finite"}


@pytest.mark.parametrize("workers", [0, 1])
def test_odd_looking_images_are_scored_and_named(model, folder, workers):
    cv2.imwrite(str(folder / "1.png"), np.full((64, 64), 7, np.uint8))
    phantoms = [draw(i, size=96).image for i in range(3)]
    for number, image in ((0, phantoms[0]), (2, phantoms[1]), (3, 255 - phantoms[2])):
        cv2.imwrite(str(folder / f"{number}.png"), image)
    (folder / "5.png").write_bytes(b"no image")
    classifier = ZeroShotClassifier(model, PROMPTS, workers=workers, batch_size=2)
    assert len(classifier.predict(folder)) == 6
    verdicts = classifier.verdicts
    assert verdicts["image"].tolist() == ["0.png", "1.png", "2.png", "3.png", "4.png", "6.png"]
    assert verdicts["frontal"].tolist() == [True, False, True, False, False, False]
    assert ((verdicts["score"] > 0) == ~verdicts["frontal"]).all()
    assert verdicts["looks"].tolist()[3] == "inverted (bones dark)"
    said = classifier.warnings
    assert sum("1.png is almost one flat grey" in sentence for sentence in said) == 1
    assert "3.png looks inverted (bones dark): its scores may mean nothing." in said
    assert len(said) == 5, "one for each image that does not look frontal, and one for the flat grey"
    classifier.predict([phantoms[0]])
    assert classifier.warnings == []
    assert classifier.verdicts["image"].tolist() == ["image 0"]


def test_bfloat16_scores_stay_near_and_come_out_as_float32(model, folder):
    exact = ZeroShotClassifier(model, PROMPTS).predict(folder).iloc[:, 1:].to_numpy()
    classifier = ZeroShotClassifier(model, PROMPTS, dtype=torch.bfloat16)
    low = classifier.predict(folder).iloc[:, 1:].to_numpy()
    assert classifier.choices.dtype == (torch.bfloat16, "asked for")
    assert low.dtype == np.float32
    # 8 bits of mantissa through some ten layers
    assert np.linalg.norm(low - exact) / np.linalg.norm(exact) < 0.03
    # not rounded to bfloat16 on the way out
    assert (torch.tensor(low).bfloat16().float().numpy() != low).any()


def test_a_dead_worker_is_a_sentence(model, folder, monkeypatch):
    classifier = ZeroShotClassifier(model, PROMPTS, workers=1)
    monkeypatch.setattr(type(classifier.processor), "read", lambda self, image: os._exit(1))
    with pytest.raises(UserError, match="A process that reads images died after 0 of 7 images"):
        classifier.predict(folder)


def test_an_unforeseen_error_of_one_image_is_kept_without_its_text(model, folder, monkeypatch):
    classifier = ZeroShotClassifier(model, PROMPTS)
    read = type(classifier.processor).read

    def sometimes(self, image):
        if image.name == "4.png":
            raise ZeroDivisionError("DOE^JANE")
        return read(self, image)

    monkeypatch.setattr(type(classifier.processor), "read", sometimes)
    assert len(classifier.predict(folder)) == 6
    assert classifier.failures["reason"].tolist() == ["cannot be read (ZeroDivisionError)"]


def test_wrong_arguments_get_a_sentence(model, tmp_path):
    for options, sentence in [
        ({"pool": "median"}, "pool must be mean or max, got 'median'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"workers": -1}, "workers must not be negative, got -1"),
        ({"device": "gpu0"}, "There is no device 'gpu0'"),
        ({"dtype": torch.float64}, "dtype must be float32, bfloat16 or float16, got torch.float64"),
        ({"backend": "torhc"}, "'torch'"),
    ]:
        with pytest.raises(UserError, match=sentence):
            ZeroShotClassifier(model, PROMPTS, **options)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="finds no CUDA device"):
            ZeroShotClassifier(model, PROMPTS, device="cuda")
    with pytest.raises(UserError, match="holds no files"):
        ZeroShotClassifier(model, PROMPTS).predict(tmp_path)


def test_prompts_of_which_cleaning_leaves_nothing_are_refused(model):
    with pytest.raises(UserError, match="prompt '肺炎' of class 'b' is empty after the model's text cleaning"):
        ZeroShotClassifier(model, {"a": "mass", "b": ["there is a mass", "肺炎"]})
    published = CARZero(dataclasses.replace(model.config, text_mode="published"), model.tokenizer)
    with pytest.raises(UserError, match=r"prompt 'mass' of class 'a' .* keeps no sentence of one word"):
        ZeroShotClassifier(published, {"a": "mass"})


def test_choices_say_why(model, folder, monkeypatch):
    classifier = ZeroShotClassifier(model, PROMPTS, device="cpu", backend="torch")
    classifier.predict(folder)
    assert classifier.choices.backend == ("torch", "asked for")
    assert classifier.choices.workers[0] == 0
    assert reading.choose_workers(10_000)[0] >= 1
    for amx in (False, True):
        for avx512 in (False, True):
            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
            monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
            dtype, why = choose_dtype(torch.device("cpu"))
            assert dtype == (torch.bfloat16 if amx or avx512 else torch.float32)
            assert ("without" in why) == (dtype == torch.float32)
    assert classify.choose_dtype(torch.device("meta"))[0] == torch.float32


def test_a_saved_model_is_opened_from_its_folder(model, folder, tmp_path_factory):
    saved = tmp_path_factory.mktemp("model")
    model.save_pretrained(saved)
    expected = ZeroShotClassifier(model, PROMPTS).predict(folder)
    pd.testing.assert_frame_equal(ZeroShotClassifier(saved, PROMPTS).predict(folder), expected)


def test_a_graph_gives_the_same_scores(model, folder):
    plain = ZeroShotClassifier(model, PROMPTS, batch_size=3, dtype=torch.float32)
    expected = plain.predict(folder)
    assert plain.choices.graph == (False, "CUDA graphs are for CUDA devices, not for cpu")
    graphed = ZeroShotClassifier(model, PROMPTS, batch_size=3, dtype=torch.float32)
    records = []

    def capture(function):
        output = function()
        records.append(output.shape)
        return lambda: output.copy_(function()), output

    graphed._graphed._capture = capture
    graphed._choose = lambda images: dataclasses.replace(plain.choices, graph=(True, "forced"))
    table = graphed.predict(folder)
    assert records == [(3, len(graphed.prompts.texts))]
    assert list(table["image"]) == list(expected["image"])
    # the last batch is padded, so its rows meet other tiles
    np.testing.assert_allclose(table.iloc[:, 1:], expected.iloc[:, 1:], rtol=1e-5, atol=1e-6)
