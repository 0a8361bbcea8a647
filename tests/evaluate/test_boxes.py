"""Files of boxes: ChestX-Det10's, NIH's, any CSV; damaged ones get one sentence."""

from __future__ import annotations

import json

import pytest

from carzero.errors import UserError
from carzero.evaluate.boxes import finding_key, image_key, read_boxes


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_chestxdet10(tmp_path):
    entries = [
        {"file_name": "36199.png", "syms": [], "boxes": []},
        {"file_name": "36302.png", "syms": ["Effusion", "Mass", "Effusion"],
         "boxes": [[1, 2, 3, 4], [5, 6, 9, 9], [0, 0, 1, 1]]},
    ]  # fmt: skip
    boxes = read_boxes(write(tmp_path, "test.json", json.dumps(entries)))
    assert len(boxes) == 3
    assert boxes.findings == ["effusion", "mass"]
    assert boxes.of("folder/36302.jpg", "EFFUSION", 1024, 1024) == ((1, 2, 3, 4), (0, 0, 1, 1))
    assert boxes.of("36199.png", "Effusion", 1024, 1024) == ()
    assert boxes.of("unknown.png", "Effusion", 1024, 1024) == ()


def test_nih_official_header_and_scale(tmp_path):
    text = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00013118_008.png,Infiltrate,225.0,547.5,100,50,,,\n"
    boxes = read_boxes(write(tmp_path, "BBox_List_2017.csv", text), size=(1024, 1024))
    # a quarter of the size, and not square
    assert boxes.of("00013118_008.jpg", "Infiltration", 256, 512) == ((56.25, 273.75, 81.25, 298.75),)


@pytest.mark.parametrize(
    "header", ["image,finding,x0,y0,x1,y1", "File_Name, Class ,xmin,ymin,xmax,ymax", "label,path,x,y,width,height"]
)
def test_any_csv(tmp_path, header):
    sizes = header.endswith("height")
    row = "Pleural_Thickening,a/b.dcm,10,20,5,6" if sizes else "a/b.dcm,Pleural_Thickening,10,20,15,26"
    boxes = read_boxes(write(tmp_path, "b.csv", f"\ufeff{header}\n\n{row}\n"))
    assert boxes.of("b.png", "pleural thickening", 99, 99) == ((10, 20, 15, 26),)


def test_keys():
    assert image_key("a\\b\\C.x.PNG") == "C.x"
    assert finding_key(" Pleural_Thickening ") == finding_key("pleural  thickening") == "pleural thickening"
    assert finding_key("Infiltrate") == finding_key("Infiltration")


MISTAKES = {
    "boxes.txt": ("", "must end in .json or .csv"),
    "a.json": ("[", "line 1, column 2"),
    "b.json": ('{"a": 1}', "must hold a list of"),
    "c.json": ('[{"file_name": "a"}]', "entry 1: it must hold"),
    "d.json": ('[{"file_name": "a", "syms": ["x"], "boxes": []}]', "entry 1: 1 findings (syms) for 0 boxes"),
    "e.json": ("[]", "holds no box"),
    "f.json": ('[{"file_name": "a", "syms": ["x"], "boxes": [[1, 2, 3]]}]', "entry 1: a box needs four numbers"),
    "a.csv": ("", "line 1: the header needs"),
    "b.csv": ("image,finding,x0,y0\n", "line 1: the header needs"),
    "c.csv": ("image,finding,x0,y0,x1,y1\na,b,1,2,3\n", "line 2: 5 cells where the header has 6"),
    "d.csv": ("image,finding,x0,y0,x1,y1\na,b,1,2,3,x\n", "line 2: a box needs four numbers, got 1, 2, 3, x"),
    "e.csv": ("image,finding,x0,y0,x1,y1\na,b,1,2,1,4\n", "line 2: a box needs x0 < x1 and y0 < y1, got 1, 2, 1, 4"),
    "f.csv": ("image,finding,x,y,w,h\na,b,1,2,nan,4\n", "line 2: a box needs x0 < x1"),
    "g.csv": ("image,finding,x,y,w,h\na,b,1,2,,4\n", "line 2: a box needs four numbers, got 1, 2, , 4"),
    "h.csv": ("image,finding,x,y,w,h\na/x.png,b,1,2,3,4\nb/x.png,b,1,2,3,4\n",
              "line 3: 'b/x.png' and 'a/x.png' are one image"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_one_sentence_for_each_mistake(tmp_path, name):
    text, words = MISTAKES[name]
    with pytest.raises(UserError) as error:
        read_boxes(write(tmp_path, name, text))
    assert name in str(error.value)
    assert words in str(error.value)
    with pytest.raises(UserError, match="does not exist"):
        read_boxes(tmp_path / "gone.csv")


@pytest.mark.data
def test_real_files(shared_data):
    boxes = read_boxes(shared_data / "eval_labels" / "chestxdet10" / "test.json")
    assert len(boxes.findings) == 10
    assert len(boxes.boxes) > 400
    nih = read_boxes(shared_data / "nih_cxr14" / "bboxes_1024px.csv", size=(1024, 1024))
    assert len(nih) == 38
    for image, findings in nih.boxes.items():
        for finding in findings:
            for x0, y0, x1, y1 in nih.of(image, finding, 256, 256):
                assert 0 <= x0 < x1 <= 256
                assert 0 <= y0 < y1 <= 256
