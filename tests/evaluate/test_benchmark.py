"""The benchmarks' files and the readers of official label files, on small files of the same form and on real ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from carzero.errors import UserError
from carzero.evaluate.benchmark import load_benchmark, names

NIH = [
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
]  # fmt: skip


def test_every_benchmark_loads_and_its_references_have_a_source():
    assert set(names()) >= {
        "openi",
        "padchest",
        "padchest20",
        "chestxray14",
        "chexpert",
        "chestxdet10",
        "chexpert5x200",
    }
    for name in names():
        benchmark = load_benchmark(name)
        assert benchmark.title
        assert benchmark.labels
        for reference in benchmark.references:
            assert 0.5 < reference.value < 1
            assert reference.source
    # which of ChestX-ray14's two test lists stands in the title, and so in every table
    assert "22,433" in load_benchmark("chestxray14").title
    assert "25,596" in load_benchmark("chestxray14-official").title


def test_openi_finds_names_and_synonyms_in_automatic_labels(tmp_path):
    path = tmp_path / "custom.csv"
    path.write_text(
        ",uid,file_name,labels_major,labels_automatic\n"
        "0,CXR1,a.png,normal,\n"
        '0,CXR2,b.png,Mass,"Calcified granuloma|atelectases"\n'
        "0,CXR2,c.png,,pleural thickening|infiltrates\n"
    )
    labels = load_benchmark("openi").read_labels(path)
    found = {name: labels.table[name].tolist() for name in labels.classes if labels.table[name].any()}
    assert found == {
        "Atelectasis": [0, 1, 0], "Infiltration": [0, 0, 1], "Pleural_Thickening": [0, 0, 1],
        "Calcified Granuloma": [0, 1, 0], "Granuloma": [0, 1, 0],
    }  # fmt: skip
    assert labels.study.tolist() == ["CXR1", "CXR2", "CXR2"]


def test_chestxray14_reads_the_published_list_and_nih_table_alike(tmp_path):
    one = ["0"] * 14
    one[2] = one[12] = "1"
    (tmp_path / "list.txt").write_text(
        f"images/00000013_005.png {' '.join(one)}\n00000014_000.png {' '.join('0' * 14)}\n"
    )
    published = load_benchmark("chestxray14").read_labels(tmp_path / "list.txt")
    (tmp_path / "entry.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
        "00000014_000.png,No Finding,0,14,061Y,F,PA\n00000013_005.png,Effusion|Pleural_Thickening,5,13,60,M,AP\n"
        "00000099_000.png,Hernia,0,99,60,M,AP\n"
    )
    (tmp_path / "test_list.txt").write_text("00000013_005.png\n00000014_000.png\n")
    official = load_benchmark("chestxray14-official").read_labels(tmp_path / "entry.csv", tmp_path / "test_list.txt")
    assert list(published.classes) == list(official.classes) == NIH
    assert published.table[NIH].astype(int).to_numpy().tolist() == official.table[NIH].to_numpy().tolist()
    assert published.patient.tolist() == ["00000013", "00000014"]
    assert official.table[["sex", "age", "view"]].values.tolist() == [["M", 60, "AP"], ["F", 61, "PA"]]
    assert "2 images were measured where chestxray14 has 22,433" in load_benchmark("chestxray14").other_images(2)
    (tmp_path / "test_list.txt").write_text("Path\n00000013_005.png\n00000013_006.png\n")
    with pytest.raises(UserError, match=r"1 of them have no label .*00000013_006.png"):
        load_benchmark("chestxray14-official").read_labels(tmp_path / "entry.csv", tmp_path / "test_list.txt")


def test_padchest_reads_the_published_json_and_the_official_table_alike(tmp_path):
    (tmp_path / "manual_image.json").write_text(
        json.dumps({"a.png": ["normal"], "b.png": ["nodule", "COPD signs"], "c.png": ["exclude"]})
    )
    (tmp_path / "official.csv").write_text(
        ",ImageID,StudyID,PatientID,PatientSex_DICOM,Projection,MethodLabel,Labels\n"
        "0,a.png,s1,p1,F,PA,Physician,['normal']\n"
        "1,x.png,s1,p1,F,L,RNN_model,['nodule']\n"
        "2,b.png,s2,p2,M,AP,Physician,\"[' nodule', 'COPD signs', '']\"\n"
        "3,c.png,s3,p2,M,PA,Physician,['exclude']\n"
    )
    benchmark = load_benchmark("padchest")
    published = benchmark.read_labels(tmp_path / "manual_image.json")
    official = benchmark.read_labels(tmp_path / "official.csv")
    assert published.classes == official.classes == ("COPD signs", "nodule")
    assert published.images == official.images == ["a.png", "b.png", "c.png"]
    assert published.table.to_numpy().tolist() == [[0, 0], [1, 1], [0, 0]]
    assert official.table[["COPD signs", "nodule"]].to_numpy().tolist() == [[0, 0], [1, 1], [0, 0]]
    assert official.patient.tolist() == ["p1", "p2", "p2"]
    assert official.table["view"].tolist() == ["PA", "AP", "PA"]


def test_chexpert_takes_patients_and_studies_from_paths(tmp_path):
    header = "Path,Atelectasis,Cardiomegaly,Consolidation,Edema,Pleural Effusion,No Finding\n"
    (tmp_path / "t.csv").write_text(header + "test/patient64741/study1/view1_frontal.jpg,1.0,0.0,-1.0,,0,1\n")
    labels = load_benchmark("chexpert").read_labels(tmp_path / "t.csv")
    assert (labels.patient.tolist(), labels.study.tolist()) == (["patient64741"], ["study1"])
    assert "No Finding" not in labels.table
    # all its files are called alike: a list is compared by patient and study
    rows = "".join(f"d/patient{p}/study1/view1.jpg,{p - 1},0,0,0,0,0\n" for p in (1, 2))
    (tmp_path / "t.csv").write_text(header + rows)
    (tmp_path / "list.csv").write_text("Path\nx/patient1/study1/view1.jpg\n")
    kept = load_benchmark("chexpert").read_labels(tmp_path / "t.csv", tmp_path / "list.csv")
    assert (kept.patient.tolist(), kept.table["Atelectasis"].tolist()) == (["patient1"], ["0"])
    (tmp_path / "t.csv").write_text(header + "view1.jpg,1,0,0,0,0,0\n")
    with pytest.raises(UserError, match=r"'view1.jpg', which names no patient"):
        load_benchmark("chexpert").read_labels(tmp_path / "t.csv")


def test_own_benchmark_and_wrong_ones(tmp_path):
    (tmp_path / "labels.csv").write_text("image,Mass,Nodule\n1.png,1,0\n")
    (tmp_path / "mine.yaml").write_text(
        "title: Mine\nreader: table\nlabels: labels.csv\nprompts: p.json\nclasses: [Mass]\n"
    )
    benchmark = load_benchmark(tmp_path / "mine.yaml")
    assert benchmark.read_labels(tmp_path / "labels.csv").classes == ("Mass",)
    for text, says in {
        "title: x": "lacks the field 'labels'",
        "title: x\nreader: y\nlabels: z\nprompts: p": "reader 'y'; known: openi",
        "title: x\nreader: table\nlabels: z\nprompts: p\nclass: [a]": "unknown field 'class'",
        "title: [": "no YAML",
        "title: x\nreader: table\nlabels: z\nprompts: p\nsubset: head": "only tail",
        "title: x\nreader: table\nlabels: z\nprompts: p\nreferences: [{model: a}]": "wrong reference",
    }.items():
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(UserError, match=says):
            load_benchmark(tmp_path / "mine.yaml")
    with pytest.raises(UserError, match="Did you mean 'openi'"):
        load_benchmark("open-i")


@pytest.mark.data
def test_real_label_files_have_the_published_counts(shared_data):
    folder = shared_data / "eval_labels"
    openi = load_benchmark("openi").read_labels(
        folder / "openi" / "custom.csv", folder / "openi" / "openi_multi_label_image.csv"
    )
    assert len(openi.images) == 7470
    assert load_benchmark("openi").other_images(len(openi.images)) is None
    assert len(np.unique(openi.study)) == 3851, "the published README counts 3,851 reports"
    chest = load_benchmark("chestxdet10").read_labels(
        folder / "chestxdet10" / "test.json", folder / "chestxdet10" / "chestXDet10_test_image.csv"
    )
    boxes = json.loads((folder / "chestxdet10" / "test.json").read_text())
    assert chest.table["Effusion"].sum() == sum("Effusion" in entry["syms"] for entry in boxes) == 252
    assert load_benchmark("chestxdet10").other_images(len(chest.images)) is None
