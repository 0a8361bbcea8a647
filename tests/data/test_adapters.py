"""Manifests from small trees in the layouts in which the public sets are published; the images are drawn."""

from __future__ import annotations

import gzip
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from carzero.cli import main
from carzero.data.adapters import make_manifest, write_manifest
from carzero.data.adapters.layout import findings_and_impression, sections
from carzero.data.dataset import ManifestDataset
from carzero.errors import UserError

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 FINDINGS:

 There is a small left
 pleural effusion.

 IMPRESSION:  No pneumothorax.
"""


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(len(path.name)).integers(0, 256, (40, 50), dtype=np.uint8)
    assert cv2.imwrite(str(path.with_suffix(".png")), grey)
    path.with_suffix(".png").rename(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def opens(table: pd.DataFrame, root: Path, out: Path) -> ManifestDataset:
    """Every manifest with texts is one that training reads, its images included."""
    write_manifest(table, root, out)
    dataset = ManifestDataset(out)
    assert [dataset.pixels(i).shape for i in range(len(dataset))] == [(3, 224, 224)] * len(table)
    return dataset


def mimic(root: Path, suffix: str) -> None:
    rows = [
        ("a1", "10000032", "50414267", "PA", "train"),
        ("a2", "10000032", "50414267", "LATERAL", "train"),
        ("b1", "11000011", "50000001", "AP", "validate"),
        ("c1", "12000012", "50000002", "PA", "test"),
    ]
    for name, patient, study, *_ in rows:
        folder = root / "files" / f"p{patient[:2]}" / f"p{patient}"
        image(folder / f"s{study}" / f"{name}{suffix}")
        # the third study has no report
        if study != "50000002":
            text(folder / f"s{study}.txt", REPORT if study == "50414267" else "WET READ: a\n\n No mass. \n")
    with gzip.open(root / "mimic-cxr-2.0.0-metadata.csv.gz", "wt") as file:
        file.write("dicom_id,subject_id,study_id,ViewPosition\n" + "\n".join(",".join(r[:4]) for r in rows))
    with gzip.open(root / "mimic-cxr-2.0.0-split.csv.gz", "wt") as file:
        file.write("dicom_id,study_id,subject_id,split\n" + "\n".join(f"{r[0]},{r[2]},{r[1]},{r[4]}" for r in rows))


def test_mimic_cxr_jpg(tmp_path: Path) -> None:
    mimic(tmp_path, ".jpg")
    made = make_manifest("mimic_cxr", tmp_path)
    assert made.table.to_dict("records") == [
        {
            "image": "files/p10/p10000032/s50414267/a1.jpg",
            "text": "There is a small left pleural effusion. No pneumothorax.",
            "patient": "10000032", "study": "50414267", "view": "PA", "split": "train",
        },
        {
            "image": "files/p11/p11000011/s50000001/b1.jpg", "text": "No mass.", "patient": "11000011",
            "study": "50000001", "view": "AP", "split": "validate",
        },
    ]  # fmt: skip
    assert made.left_out == {"of another view (LATERAL)": 1, "without a text": 1}
    assert opens(made.table, tmp_path, tmp_path / "m.csv").texts == made.table["text"].tolist()
    everything = make_manifest("mimic_cxr", tmp_path, views="all", with_text=False)
    assert len(everything.table) == 4
    listed = make_manifest("mimic_cxr", tmp_path, exclude=["b1", ""])
    assert listed.table["study"].tolist() == ["50414267"]
    assert listed.left_out["excluded by the list"] == 1


def test_mimic_cxr_dicom_takes_views_from_the_headers(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

    mimic(tmp_path, ".jpg")
    (tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    rows = []
    for path in sorted(tmp_path.rglob("*.jpg")):
        header = Dataset()
        header.ViewPosition = {"a1": "PA", "a2": "LL"}.get(path.stem, "")
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
        header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        header.save_as(path.with_suffix(".dcm"), enforce_file_format=True)
        patient, study = path.parts[-3][1:], path.parts[-2][1:]
        rows.append(f"{patient},{study},{path.stem},{path.with_suffix('.dcm').relative_to(tmp_path)}")
    text(tmp_path / "cxr-record-list.csv", "subject_id,study_id,dicom_id,path\n" + "\n".join(rows))
    table = make_manifest("mimic_cxr", tmp_path).table
    assert table["image"].tolist() == ["files/p10/p10000032/s50414267/a1.dcm"]
    assert table["split"].tolist() == ["train"]


def test_openi_xml_and_tables(tmp_path: Path) -> None:
    xml = """<eCitation><MedlineCitation><Article><Abstract>
      <AbstractText Label="INDICATION">Cough</AbstractText>
      <AbstractText Label="FINDINGS">The XXXX are clear.  XXXX heart.</AbstractText>
      <AbstractText Label="IMPRESSION">Normal.</AbstractText>
    </Abstract></Article></MedlineCitation>
    <parentImage id="CXR1_1_IM-0001-3001"/><parentImage id="CXR1_1_IM-0001-4001"/></eCitation>"""
    text(tmp_path / "a" / "ecgen-radiology" / "1.xml", xml)
    image(tmp_path / "a" / "NLMCXR_png" / "CXR1_1_IM-0001-3001.png")
    found = make_manifest("openi", tmp_path / "a").table
    # the second image was not fetched
    assert found.to_dict("records") == [
        {
            "image": "NLMCXR_png/CXR1_1_IM-0001-3001.png",
            "text": "The are clear. heart. Normal.",
            "patient": "1",
            "study": "1",
        }
    ]
    opens(found, tmp_path / "a", tmp_path / "o.parquet")
    tables = tmp_path / "b"
    for name in ("1_IM-0001-4001.dcm.png", "1_IM-0001-3001.dcm.png"):
        image(tables / "images" / name)
    text(
        tables / "indiana_projections.csv",
        "uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n1,1_IM-0001-3001.dcm.png,Lateral\n",
    )
    text(tables / "indiana_reports.csv", "uid,MeSH,findings,impression\n1,normal,Clear lungs.,No XXXX disease.\n")
    table = make_manifest("openi", tables).table
    assert table.to_dict("records") == [
        {
            "image": "images/1_IM-0001-4001.dcm.png",
            "text": "Clear lungs. No disease.",
            "patient": "1",
            "study": "1",
            "view": "FRONTAL",
        }
    ]


def test_padchest(tmp_path: Path) -> None:
    for folder, name in (("0", "x1.png"), ("0", "x2.png"), ("54", "x3.png")):
        image(tmp_path / folder / name)
    head = "ImageID,ImageDir,StudyID,PatientID,Projection,MethodLabel,Report,Labels"
    rows = [
        "x1.png,0,s1,p1,PA,Physician,  cardiomegalia .  sin  derram ,\"['cardiomegaly', ' pleural effusion']\"",
        "x2.png,0,s1,p1,L,Physician,lateral,\"['normal']\"",
        "x3.png,54,s2,p2,AP_horizontal,RNN_model,normal,[]",
    ]
    text(tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", "\n".join([head, *rows]))
    table = make_manifest("padchest", tmp_path).table
    assert table["image"].tolist() == ["0/x1.png", "54/x3.png"]
    assert table["text"].tolist() == ["cardiomegalia . sin derram", "normal"]
    assert table["method"].tolist() == ["Physician", "RNN_model"]
    assert table[["cardiomegaly", "pleural effusion", "normal"]].to_numpy().tolist() == [
        ["1", "1", "0"],
        ["0", "0", "0"],
    ]
    opens(table, tmp_path, tmp_path.parent / "pad.csv")


def test_chexpert_with_and_without_reports(tmp_path: Path) -> None:
    for name in ("train/patient00001/study1/view1_frontal.jpg", "train/patient00001/study1/view2_lateral.jpg"):
        image(tmp_path / name)
    image(tmp_path / "valid/patient64541/study1/view1_frontal.jpg")
    head = "Path,Sex,Age,Frontal/Lateral,AP/PA,Cardiomegaly,Edema,Pneumonia"
    prefix = "CheXpert-v1.0-small"
    text(
        tmp_path / "train.csv",
        f"{head}\n{prefix}/train/patient00001/study1/view1_frontal.jpg,Male,60,Frontal,PA,1.0,-1.0,\n"
        f"{prefix}/train/patient00001/study1/view2_lateral.jpg,Male,60,Lateral,,1.0,0.0,\n",
    )
    text(
        tmp_path / "valid.csv",
        f"{head}\n{prefix}/valid/patient64541/study1/view1_frontal.jpg,Male,60,Frontal,AP,0.0,1.0,0.0\n",
    )
    table = make_manifest("chexpert", tmp_path).table
    assert table[["patient", "study", "view", "split", "Cardiomegaly", "Edema", "Pneumonia"]].to_numpy().tolist() == [
        ["patient00001", "patient00001/study1", "PA", "train", "1", "", ""],
        ["patient64541", "patient64541/study1", "AP", "valid", "0", "1", "0"],
    ]
    plus = tmp_path / "df_chexpert_plus_240401.csv"
    text(
        plus,
        "path_to_image,section_findings,section_impression\n"
        "train/patient00001/study1/view1_frontal.jpg,Large heart.,Cardiomegaly.\n",
    )
    made = make_manifest("chexpert", tmp_path, reports=plus)
    assert made.table["text"].tolist() == ["Large heart. Cardiomegaly."]
    assert made.left_out == {"of another view (LATERAL)": 1, "without a text": 1}
    opens(made.table, tmp_path, tmp_path / "c.csv")


def test_nih_and_vindr(tmp_path: Path) -> None:
    nih = tmp_path / "nih"
    image(nih / "images_001" / "images" / "00000001_000.png")
    image(nih / "images_012" / "images" / "00000002_000.png")
    text(
        nih / "Data_Entry_2017_v2020.csv",
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
        "00000001_000.png,Cardiomegaly|Effusion,0,1,58,M,PA\n00000002_000.png,No Finding,0,2,58,M,AP\n",
    )
    text(nih / "train_val_list.txt", "00000001_000.png\n")
    text(nih / "test_list.txt", "00000002_000.png")
    table = make_manifest("nih_cxr14", nih).table
    assert table["image"].tolist() == ["images_001/images/00000001_000.png", "images_012/images/00000002_000.png"]
    assert table[["patient", "split", "Cardiomegaly", "Effusion", "Hernia"]].to_numpy().tolist() == [
        ["1", "train", "1", "1", "0"],
        ["2", "test", "0", "0", "0"],
    ]
    vindr = tmp_path / "vindr"
    text(
        vindr / "annotations" / "image_labels_train.csv",
        "image_id,rad_id,Cardiomegaly,No finding\nq1,R1,1,0\nq1,R2,1,0\nq1,R3,0,1\nq2,R1,0,1\n",
    )
    text(vindr / "annotations" / "image_labels_test.csv", "image_id,Cardiomegaly,No finding\nq3,1,0\n")
    table = make_manifest("vindr_cxr", vindr).table
    assert table[["image", "split", "Cardiomegaly", "No finding"]].to_numpy().tolist() == [
        ["train/q1.dicom", "train", "1", "0"],
        ["train/q2.dicom", "train", "0", "1"],
        ["test/q3.dicom", "test", "1", "0"],
    ]


def test_sections_of_reports() -> None:
    assert sections(REPORT)["impression"] == "No pneumothorax."
    assert findings_and_impression("FINDINGS AND IMPRESSION: All clear.\n") == "All clear."
    assert (
        findings_and_impression("A first paragraph.\n\n The last one,\n of two lines. \n")
        == "The last one, of two lines."
    )
    assert findings_and_impression("") == ""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mimic", r"unknown set 'mimic'. Known: mimic_cxr"),
        ("mimic_cxr", "holds no list of images: looked for mimic-cxr-"),
        ("openi", "holds no XML report and no indiana_projections.csv"),
        ("padchest", "holds no table of labels"),
        ("chexpert", "holds no train.csv, valid.csv or test.csv"),
        ("nih_cxr14", "holds no table of labels"),
        ("vindr_cxr", "holds no train labels"),
    ],
)
def test_another_layout_gets_a_sentence(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_manifest(name, tmp_path)


def test_command_writes_a_manifest_and_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mimic(tmp_path / "set", ".jpg")
    text(tmp_path / "noisy.txt", "50000001\n")
    out = tmp_path / "m.csv"
    words = ["data", "manifest", "mimic_cxr", str(tmp_path / "set"), "--out", str(out)]
    assert main([*words, "--exclude", str(tmp_path / "noisy.txt")]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: 1 images; columns image, text, patient, study, view, split" in printed
    assert "left out: 1 images excluded by the list" in printed
    assert pd.read_csv(out)["image"].tolist() == ["set/files/p10/p10000032/s50414267/a1.jpg"]
    assert main([*words[:-1], str(tmp_path / "m.txt")]) == 2
    assert "must end in .csv or .parquet" in capsys.readouterr().err
