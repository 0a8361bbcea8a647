"""The prompts of the public benchmarks, by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from carzero.errors import UserError
from carzero.prompts.sets import TEMPLATE, PromptSet

# PadChest's labels; those that name no finding (exclude, normal, suboptimal study, unchanged) are left out
_PADCHEST = """
abnormal foreign body, abscess, adenopathy, air bronchogram, air fluid level, air trapping, alveolar pattern, aortic
aneurysm, aortic atheromatosis, aortic button enlargement, aortic elongation, aortic endoprosthesis, apical pleural
thickening, artificial aortic heart valve, artificial heart valve, artificial mitral heart valve, asbestosis signs,
ascendent aortic elongation, atelectasis, atelectasis basal, atypical pneumonia, axial hyperostosis, azygoesophageal
recess shift, azygos lobe, blastic bone lesion, bone cement, bone metastasis, breast mass, bronchiectasis,
bronchovascular markings, bullas, calcified adenopathy, calcified densities, calcified fibroadenoma, calcified
granuloma, calcified mediastinal adenopathy, calcified pleural plaques, calcified pleural thickening, callus rib
fracture, cardiomegaly, catheter, cavitation, central vascular redistribution, central venous catheter, central venous
catheter via jugular vein, central venous catheter via subclavian vein, central venous catheter via umbilical vein,
cervical rib, chest drain tube, Chilaiditi sign, chronic changes, clavicle fracture, consolidation, COPD signs,
costochondral junction hypertrophy, costophrenic angle blunting, cyst, dai, descendent aortic elongation,
dextrocardia, diaphragmatic eventration, double J stent, dual chamber device, electrical device, emphysema, empyema,
end on vessel, endoprosthesis, endotracheal tube, esophagic dilatation, external foreign body, fibrotic band, fissure
thickening, flattened diaphragm, fracture, gastrostomy tube, goiter, granuloma, ground glass pattern, gynecomastia,
heart insufficiency, heart valve calcified, hemidiaphragm elevation, hiatal hernia, hilar congestion, hilar
enlargement, humeral fracture, humeral prosthesis, hydropneumothorax, hyperinflated lung, hypoexpansion, hypoexpansion
basal, increased density, infiltrates, interstitial pattern, kerley lines, kyphosis, laminar atelectasis, lepidic
adenocarcinoma, lipomatosis, lobar atelectasis, loculated fissural effusion, loculated pleural effusion, lung
metastasis, lung vascular paucity, lymphangitis carcinomatosa, lytic bone lesion, major fissure thickening, mammary
prosthesis, mass, mastectomy, mediastinal enlargement, mediastinal mass, mediastinal shift, mediastinic lipomatosis,
metal, miliary opacities, minor fissure thickening, multiple nodules, nephrostomy tube, nipple shadow, nodule, non
axial articular degenerative changes, NSG tube, obesity, osteopenia, osteoporosis, osteosynthesis material, pacemaker,
pectum carinatum, pectum excavatum, pericardial effusion, pleural effusion, pleural mass, pleural plaques, pleural
thickening, pneumomediastinum, pneumonia, pneumoperitoneo, pneumothorax, post radiotherapy changes, prosthesis,
pseudonodule, pulmonary artery enlargement, pulmonary artery hypertension, pulmonary edema, pulmonary fibrosis,
pulmonary hypertension, pulmonary mass, pulmonary venous hypertension, reservoir central venous catheter, respiratory
distress, reticular interstitial pattern, reticulonodular interstitial pattern, rib fracture, right sided aortic arch,
round atelectasis, sclerotic bone lesion, scoliosis, segmental atelectasis, single chamber device, soft tissue mass,
sternoclavicular junction hypertrophy, sternotomy, subacromial space narrowing, subcutaneous emphysema, superior
mediastinal enlargement, supra aortic elongation, surgery, surgery breast, surgery heart, surgery humeral, surgery
lung, surgery neck, suture material, thoracic cage deformation, total atelectasis, tracheal shift, tracheostomy tube,
tuberculosis, tuberculosis sequelae, vascular hilar enlargement, vascular redistribution, ventriculoperitoneal drain
tube, vertebral anterior compression, vertebral compression, vertebral degenerative changes, vertebral fracture,
volume loss
"""
# abbreviations and Spanish spellings, said as an English report says them
_SAID = {
    "COPD signs": "signs of chronic obstructive pulmonary disease",
    "NSG tube": "nasogastric tube",
    "bullas": "bullae",
    "dai": "automatic implantable defibrillator",
    "descendent aortic elongation": "descending aortic elongation",
    "ascendent aortic elongation": "ascending aortic elongation",
    "esophagic dilatation": "esophageal dilatation",
    "mediastinic lipomatosis": "mediastinal lipomatosis",
    "pectum carinatum": "pectus carinatum",
    "pectum excavatum": "pectus excavatum",
    "pneumoperitoneo": "pneumoperitoneum",
    "heart insufficiency": "heart failure",
    "infiltrates": "lung infiltrates",
    "atelectasis basal": "basal atelectasis",
    "hypoexpansion basal": "basal hypoexpansion",
    "heart valve calcified": "calcified heart valve",
    **{f"surgery {site}": f"{site} surgery" for site in ("breast", "heart", "humeral", "lung", "neck")},
}
_PADCHEST_LABELS = [" ".join(label.split()) for label in _PADCHEST.split(",")]

#: benchmark -> {class as its label files spell it: finding as the prompt says it}. OpenI, ChestXray14 and ChestXDet10
#: are the published wordings; CheXpert's and PadChest's are made from the labels.
BENCHMARKS: dict[str, dict[str, str]] = {
    "openi": {
        "Atelectasis": "Atelectasis",
        "Cardiomegaly": "Cardiomegaly",
        "Effusion": "Pleural Effusion",
        "Infiltration": "Lung Infiltration",
        "Mass": "Pulmonary Mass",
        "Nodule": "Lung Nodule",
        "Pneumonia": "Pneumonia",
        "Pneumothorax": "Pneumothorax",
        "Edema": "Pulmonary Edema",
        "Emphysema": "Pulmonary Emphysema",
        "Fibrosis": "Pulmonary Fibrosis",
        "Pleural_Thickening": "Pleural Thickening",
        "Hernia": "Hernia",
        "Fracture": "Bone Fracture",
        "Opacity": "Lung Opacity",
        "Lesion": "Abnormal Lesion",
        "Calcified Granuloma": "Calcified Granuloma",
        "Granuloma": "Lung Granuloma",
    },
    "chestxray14": {
        "Atelectasis": "Atelectasis",
        "Cardiomegaly": "Cardiomegaly",
        "Effusion": "Pleural Effusion",
        "Infiltration": "Pulmonary Infiltration",
        "Mass": "Pulmonary Mass",
        "Nodule": "Lung Nodule",
        "Pneumonia": "Pneumonia",
        "Pneumothorax": "Pneumothorax",
        "Consolidation": "Pulmonary Consolidation",
        "Edema": "Pulmonary Edema",
        "Emphysema": "Pulmonary Emphysema",
        "Fibrosis": "Fibrosis",
        "Pleural_Thickening": "Pleural Thickening",
        "Hernia": "Hernia",
    },
    "chestxdet10": {
        "Atelectasis": "Atelectasis",
        "Calcification": "Tissue Calcification",
        "Consolidation": "Pulmonary Consolidation",
        "Effusion": "Pleural Effusion",
        "Emphysema": "Pulmonary Emphysema",
        "Fibrosis": "Fibrosis",
        "Fracture": "Bone Fracture",
        "Mass": "Pulmonary Mass",
        "Nodule": "Lung Nodule",
        "Pneumothorax": "Pneumothorax",
    },
    "chexpert": {
        "Atelectasis": "Atelectasis",
        "Cardiomegaly": "Cardiomegaly",
        "Consolidation": "Pulmonary Consolidation",
        "Edema": "Pulmonary Edema",
        "Pleural Effusion": "Pleural Effusion",
    },
    "padchest": {label: _SAID.get(label, label) for label in _PADCHEST_LABELS},
}


def prompt_set(name: str, *, templates: str | Sequence[str] = TEMPLATE) -> PromptSet:
    """The prompts of a public benchmark; the columns are its classes as its label files spell them.

    Args:
        name: ``openi``, ``chestxray14``, ``chestxdet10``, ``chexpert`` or ``padchest``.
        templates: one wording or several with ``{finding}``; each gives every class a prompt more.

    Returns:
        A `PromptSet`; by default one prompt a class. The published ones for OpenI, ChestXray14 and ChestXDet10; for
        CheXpert (its five competition classes) and PadChest (its 189 labels of a finding) from the published template.

    Raises:
        UserError: no such benchmark, or a template without ``{finding}``.

    Source: published files ``data/eval_labels/*/*_text.json``; labels of Irvin et al. 2019 and Bustos et al. 2020.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(str(name), BENCHMARKS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"prompt_set: no benchmark {name!r}.{hint} Known: {', '.join(BENCHMARKS)}.")
    return PromptSet.from_findings(BENCHMARKS[name], templates)
