"""From the human MeSH codes of Open-i reports to the findings of the lexicon.

A code is a heading and its qualifiers, "Calcinosis/lung/hilum/lymph nodes". Coders coded what a report says of the
image, also what it says with "may", so an uncertain statement counts as the finding.
"""

from __future__ import annotations

#: headings that are the finding whatever their qualifiers
HEADINGS = {
    "opacity": "lung opacity", "cardiomegaly": "cardiomegaly", "pulmonary atelectasis": "atelectasis",
    "calcified granuloma": "calcified granuloma", "granuloma": "granuloma", "cicatrix": "scarring",
    "pleural effusion": "pleural effusion",
    "atherosclerosis": "aortic atherosclerosis", "airspace disease": "airspace disease", "infiltrate": "infiltrate",
    "consolidation": "consolidation", "density": "density", "nodule": "lung nodule", "mass": "mass",
    "pneumonia": "pneumonia", "pneumothorax": "pneumothorax", "catheters, indwelling": "catheter",
    "deformity": "deformity", "granulomatous disease": "granulomatous disease", "scoliosis": "scoliosis",
    "fractures, bone": "fracture", "pulmonary congestion": "vascular congestion", "emphysema": "emphysema",
    "pulmonary emphysema": "emphysema", "bullous emphysema": "emphysema",
    "pulmonary disease, chronic obstructive": "chronic obstructive pulmonary disease", "hernia, hiatal": "hernia",
    "hernia, diaphragmatic": "hernia", "pulmonary edema": "pulmonary edema",
    "diaphragmatic eventration": "diaphragmatic eventration", "kyphosis": "kyphosis",
    "bone diseases, metabolic": "osteopenia", "osteoporosis": "osteopenia", "pulmonary fibrosis": "pulmonary fibrosis",
    "lung diseases, interstitial": "interstitial lung disease", "heart failure": "heart failure",
    "lung, hyperlucent": "hyperinflation", "spondylosis": "spinal degeneration",
    "osteophyte": "spinal degeneration", "surgical instruments": "surgical material",
    "pneumoperitoneum": "pneumoperitoneum", "spinal fusion": "spinal fusion", "stents": "stent",
    "volume loss": "volume loss",
}  # fmt: skip

#: (headings, qualifier) -> finding
QUALIFIED = {
    (("lung",), "hypoinflation"): "low lung volumes",
    (("lung",), "hyperdistention"): "hyperinflation",
    (("diaphragm",), "elevated"): "elevated hemidiaphragm",
    (("diaphragm",), "flattened"): "flattened diaphragm",
    (("aorta", "aorta, thoracic"), "tortuous"): "tortuous aorta",
    (("cardiac shadow", "heart"), "enlarged"): "cardiomegaly",
    (("costophrenic angle", "sulcus"), "blunted"): "costophrenic angle blunting",
    (("pulmonary artery",), "enlarged"): "pulmonary artery enlargement",
    (("pulmonary artery",), "prominent"): "pulmonary artery enlargement",
    (("thoracic vertebrae", "spine", "lumbar vertebrae", "cervical vertebrae"), "degenerative"): (
        "spinal degeneration"
    ),
}

#: where a calcification lies decides what the lexicon calls it
CALCINOSIS = {
    "aorta": "aortic atherosclerosis", "aorta, thoracic": "aortic atherosclerosis",
    "blood vessels": "aortic atherosclerosis", "lymph nodes": "calcified lymph nodes",
    "coronary vessels": "coronary calcification",
}  # fmt: skip


def findings_of(codes: str) -> set[str] | None:
    """The findings that a report's codes name; None where the coders left it out ("No Indexing").

    Args:
        codes: the column ``mesh_major``: codes separated by ``|``.
    """
    found: set[str] = set()
    for code in codes.lower().split("|"):
        heading, *qualifiers = (part.strip() for part in code.split("/"))
        if heading == "no indexing":
            return None
        if heading in HEADINGS:
            found.add(HEADINGS[heading])
        elif heading == "markings":
            crowded = "bronchovascular" in qualifiers
            found.add("bronchovascular crowding" if crowded else "prominent interstitial markings")
        elif heading == "calcinosis":
            places = [CALCINOSIS[q] for q in qualifiers if q in CALCINOSIS]
            found.add(places[0] if places else "calcification")
        for (headings, qualifier), finding in QUALIFIED.items():
            if heading in headings and qualifier in qualifiers:
                found.add(finding)
    return found
