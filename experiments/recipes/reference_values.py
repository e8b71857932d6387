"""Every method's hyperparameters in the field's recipes, with their sources.

Recipes and scripts of this folder use these values and no others; a test compares each of them.
`VALUES` has, by data set and method, all fields of the method, `label_weight` (of the labels' cross
entropy) and `source`: a repository's file, a paper, or "ours" for a decision taken here. `PAIRS`
has, by data set, method and (teacher, student), the fields that differ for that pair.
"""

from typing import Any

from raykd.methods import METHODS

Fields = dict[str, Any]

_CRD = "HobbitLong/RepDistiller scripts/run_cifar_distill.sh"
_MDISTILLER = "megvii-research/mdistiller"
_CFG = f"{_MDISTILLER} mdistiller/engine/cfg.py"
_DKD = f"{_MDISTILLER} configs/cifar100/dkd"
_R34 = f"{_MDISTILLER} configs/imagenet/r34_r18"
_REVIEW = "dvlab-research/ReviewKD CIFAR-100/script/reviewKD.sh"
_LS = "sunshangquan/logit-standardization-KD"
_ZOO = "AberHu/Knowledge-Distillation-Zoo README.md"
_SAKD = "zju-vipa/spot-adaptive-pytorch configs"
_NKD = "yzd-v/cls_KD configs/distillers"
_DIST = "hunto/image_classification_sota lib/models/losses; arXiv 2205.10536, section 4"

CONTRAST = {"width": 128, "negatives": 16384, "temperature": 0.07, "momentum": 0.5}
CIFAR100: dict[str, Fields] = {
    "label_only": {"label_weight": 1.0, "source": "HobbitLong/RepDistiller train_teacher.py"},
    "teacher_free": {
        "confidence": 0.99, "temperature": 20.0, "weight": 0.1,
        "label_weight": 0.9, "source": "yuanli2333/Teacher-free-KD, its ResNet18",
    },
    "kd": {
        "temperature": 4.0, "weight": 0.9, "target": "view", "label_weight": 0.1, "source": _CRD,
    },
    "hard_kd": {"weight": 0.5, "label_weight": 0.5, "source": "arXiv 2012.12877, equation 3"},
    "fitnet": {"weight": 100.0, "stage": "stage2", "label_weight": 1.0, "source": _CRD},
    "at": {"weight": 1000.0, "label_weight": 1.0, "source": _CRD},
    "sp": {"weight": 3000.0, "on": "features", "label_weight": 1.0, "source": _CRD},
    "cc": {
        "form": "product", "width": 128, "weight": None,  # the default of the form: 0.02
        "gamma": 0.4, "order": 2,  # for the other form
        "label_weight": 1.0, "source": _CRD,
    },
    "vid": {"weight": 1.0, "label_weight": 1.0, "source": _CRD},
    "relational_kd": {
        "distance_weight": 25.0, "angle_weight": 50.0, "weight": 1.0,
        "label_weight": 1.0, "source": f"{_CRD}, {_CFG}",
    },
    "pkt": {"weight": 30000.0, "label_weight": 1.0, "source": _CRD},
    "ab": {
        "weight": 1.0, "margin": 1.0, "init_epochs": 30, "settled_norm": False,
        "label_weight": 1.0, "source": f"{_CRD}; settled_norm: ours, true in its code",
    },
    "ft": {
        "weight": 200.0, "paraphraser_epochs": 30, "paraphraser_lr": 0.01,
        "label_weight": 1.0, "source": f"{_CRD}, helper/pretrain.py",
    },
    "fsp": {"weight": 50.0, "init_epochs": 30, "label_weight": 1.0, "source": _CRD},
    "nst": {"weight": 50.0, "label_weight": 1.0, "source": _CRD},
    "crd": {
        **CONTRAST, "positive": "exact", "weight": 0.8,
        "label_weight": 1.0, "source": f"{_CRD}, {_CFG}",
    },
    "dkd": {
        "temperature": 4.0, "alpha": 1.0, "beta": 8.0, "warmup_epochs": 20, "standardise": False,
        "label_weight": 1.0, "source": _CFG,
    },
    "nkd": {
        "temperature": 3.0, "gamma": 3.5, "weight": 1.0,
        "label_weight": 1.0, "source": f"{_NKD}/cifar100/res34_distill_res18_cifar.py",
    },
    "dist": {
        "temperature": 4.0, "beta": 1.0, "gamma": 1.0, "weight": 2.0,
        "label_weight": 1.0, "source": _DIST,
    },
    "reviewkd": {"weight": 1.0, "warmup_epochs": 20, "label_weight": 1.0, "source": _CFG},
    "multi_head_kd": {
        "temperature": 4.0, "weight": 1.0, "head_weight": 0.5, "head": "conv", "head_epochs": 30,
        "head_lr": 0.01,
        "label_weight": 1.0, "source": "ours; head: a relative's code, arXiv 2103.00497",
    },
    "logit_standardisation": {
        "temperature": 2.0, "weight": 9.0, "label_weight": 0.1, "source": f"{_LS} README.md",
    },
    "ctkd": {
        "weight": 0.9, "curriculum_epochs": 10,
        "label_weight": 0.1, "source": "zhengli97/CTKD scripts/run_cifar_distill.sh",
    },
    "mlkd": {  # in its own recipe the rate is 0.025
        "temperatures": [4.0, 2.0, 3.0, 5.0, 6.0], "weight": 0.9, "strong_view": True,
        "strong_label_weight": 0.1, "as_released": False, "standardise": False,
        "label_weight": 0.1, "source": "Jin-Ying/Multi-Level-Logit-Distillation, its code",
    },
    "ofd": {"weight": 0.001, "label_weight": 1.0, "source": _CFG},
    "simkd": {
        "weight": 1.0, "factor": 2,
        "label_weight": 0.0, "source": "DefangChen/SimKD scripts/run_distill.sh",
    },
    "spherical_kd": {  # its paper's values for CIFAR were not available
        "temperature": 4.0, "weight": 0.9, "variant": "layer_norm", "radius": None,
        "label_weight": 0.1, "source": "ours",
    },
    "stkd": {  # there is no code of it
        "temperature": 4.0, "weight": 0.9, "teacher": "mixed_input", "mix": "mixup", "alpha": 1.0,
        "incorrect_only": 0.0, "clean_kd": 0.0,
        "label_weight": 0.1, "source": "ours",
    },
    "cosine_kd": {
        "temperature": 4.0, "low": 2.0, "high": 6.0, "weighted": True, "weight": 1.0,
        "label_weight": 1.0, "source": "ours",
    },
    "sample_contrastive_kd": {"weight": 1.0, "label_weight": 1.0, "source": "ours"},
    "mimic_logits": {"weight": 0.1, "label_weight": 1.0, "source": _ZOO},
    "mimic_embedding": {
        "weight": 1.0, "target": "view", "normalise": False, "label_weight": 1.0, "source": "ours",
    },
    "embed_distill": {
        "distance": "l2", "weight": 1.0, "score_weight": 0.0, "items": "teacher",
        "temperature": 0.05, "label_weight": 1.0,
        "source": "the paper's distance, after sentence-transformers; else ours",
    },
    "angular": {
        "weight": 1.0, "power": 1, "label_weight": 1.0, "source": "ShrinkTeaNet's code, for faces",
    },
    "ada_distill": {
        "weight": 1.0, "head": "arcface", "scale": 64.0, "margin": 0.45, "weighted": True,
        "label_weight": 0.0, "source": "fdbtrs/AdaDistill, for faces",
    },
    "margin_distillation": {
        "weight": 1.0, "scale": 64.0, "low": 0.2, "high": 0.5,
        "label_weight": 0.0, "source": "its authors' code, for faces",
    },
    "ekd": {
        "weight": 1.0, "positive_weight": 0.02, "negative_weight": 0.01,
        "ranks": [10, 100, 1_000, 10_000, 100_000, 1_000_000], "width": 0.01, "hardest": 2000,
        "share": 0.01, "start": "first",
        "label_weight": 1.0, "source": "Tencent/TFace, for faces, whose means start at 0",
    },
    "ebkd": {
        "temperature": 4.0, "weight": 1.0, "normalise": True,
        "label_weight": 1.0, "source": "Rorozhl/CA-MKD, whose weights sum to less than 1",
    },
    "ca_mkd": {
        "temperature": 4.0, "weight": 1.0, "normalise": True, "feature_weight": 0.0,
        "label_weight": 1.0,
        "source": "Rorozhl/CA-MKD, whose weights sum to less than 1, and which compares maps, too",
    },
    "aekd": {
        "temperature": 4.0, "weight": 1.0, "cap": 0.6,
        "label_weight": 1.0, "source": "Rorozhl/CA-MKD",
    },
    "feature_distillation": {
        "distance": "cosine", "weight": 1.0, "share": 0.5, "queue": "fifo", "size": None,
        "temperature": 0.07,
        "label_weight": 1.0, "source": "LightlyTrain's v1 for the queue; else ours",
    },
    "dense_distillation": {
        "distance": "balanced", "weight": 1.0, "standardise": "none", "grid": None, "blocks": 1,
        "beta": 2.0, "temperature": None,
        "label_weight": 1.0, "source": "NVIDIA-TAO/tao-pytorch's radio",
    },
    "panel_distillation": {
        "weight": 1.0, "embedding_distance": "mixed", "map_distance": "mixed",
        "embedding_share": 0.5, "map_share": 0.5, "beta": 1.0, "projector": "linear",
        "shares": None,
        "standardise": "channel", "drop": 0.5, "grid": None,
        "label_weight": 1.0, "source": "naver/unic",
    },
    "irg": {
        "vertex": 0.1, "edge": 5.0, "transformation": 5.0, "weight": 1.0,
        "label_weight": 1.0, "source": _ZOO,
    },
    "jacobian": {"weight": 20.0, "label_weight": 1.0, "source": _ZOO},
    "sakd": {
        "mode": "adaptive", "temperature": 4.0, "kd_weight": 1.0, "gumbel_temperature": 5.0,
        "gamma": None,  # 2 over at, relational_kd and vid, otherwise 1
        "homogeneous": None,  # what its configurations say follows from the shapes
        "adapter_relu": True, "rate": 0.5, "weight_decay": 0.001, "as_released": False,
        "label_weight": 1.0, "source": f"{_SAKD}/cifar-100/seed-1029",
    },
}  # fmt: skip
AS_BASE = {
    "fitnet": {"weight": 1.0, "source": f"{_SAKD}/cifar-100/seed-1029/fitnet"}
}  # as the base of sakd
ALL_BASES_2 = {"gamma": 2.0, "source": f"{_SAKD}/tiny-imagenet/seed-1029"}
IMAGENET: dict[str, Fields] = {  # resnet34 -> resnet18, where no pair is named
    "label_only": {"label_weight": 1.0, "source": _R34},
    "kd": {
        "temperature": 1.0, "weight": 0.5, "target": "view",
        "label_weight": 0.5, "source": f"{_R34}/kd.yaml",
    },
    "dkd": {
        "temperature": 1.0, "alpha": 1.0, "beta": 0.5, "warmup_epochs": 1, "standardise": False,
        "label_weight": 1.0, "source": f"{_R34}/dkd.yaml",
    },
    "nkd": {
        "temperature": 1.0, "gamma": 1.5, "weight": 1.0,
        "label_weight": 1.0, "source": f"{_NKD}/imagenet/res34_distill_res18_img.py",
    },
    "dist": {
        "temperature": 1.0, "beta": 1.0, "gamma": 1.0, "weight": 2.0,
        "label_weight": 1.0, "source": _DIST,
    },
    "ctkd": {  # in its own recipe there are 120 epochs
        "weight": 1.0, "curriculum_epochs": 5,
        "label_weight": 1.0, "source": "zhengli97/CTKD scripts/run_imagenet_distill.sh",
    },
    "logit_standardisation": {
        "temperature": 1.0, "weight": 0.5,
        "label_weight": 0.5, "source": f"{_LS} configs/imagenet/r34_r18/kd_ours.yaml",
    },
    "at": {"weight": 1000.0, "label_weight": 1.0, "source": f"{_R34}/at.yaml"},
    "crd": {
        **CONTRAST, "positive": "exact", "weight": 0.8,
        "label_weight": 1.0, "source": f"{_R34}/crd.yaml",
    },
    "reviewkd": {
        "weight": 1.0, "warmup_epochs": 1, "label_weight": 1.0, "source": f"{_R34}/reviewkd.yaml",
    },
    "ofd": {
        "weight": 0.0001,
        "label_weight": 1.0, "source": f"{_MDISTILLER} configs/imagenet/r50_mv1/ofd.yaml",
    },
    "spherical_kd": {
        "temperature": 4.0, "weight": [[0, 0.9], [60, 0.5], [80, 0.1]],
        "variant": "layer_norm", "radius": 2.0,
        "label_weight": [[0, 0.1], [60, 0.5], [80, 0.9]],
        "source": "forjiuzhou/Spherical-Knowledge-Distillation README.md, skd_main.py",
    },
}  # fmt: skip
VALUES = {
    "cifar100": CIFAR100,
    # No source has values of its own for these: those of CIFAR-100.
    "cifar10": CIFAR100,
    "cinic10": CIFAR100,
    "tiny_imagenet": CIFAR100 | {"sakd": CIFAR100["sakd"] | ALL_BASES_2},
    "imagenet": IMAGENET,
}

Pair = tuple[str, str]


def _by_pair(source: str, **betas: float) -> Fields:
    """Fields of one pair, and where they are from."""
    return {**betas, "source": source}


_CIFAR_PAIRS: dict[str, dict[Pair, Fields]] = {
    # All others have no beta in their files, which is 8.
    "dkd": {
        ("resnet56", "resnet20"): _by_pair(f"{_DKD}/res56_res20.yaml", beta=2.0),
        ("resnet110", "resnet32"): _by_pair(f"{_DKD}/res110_res32.yaml", beta=2.0),
        ("resnet110", "resnet20"): _by_pair("ours, as for its sisters", beta=2.0),
        ("vgg13", "vgg8"): _by_pair(f"{_DKD}/vgg13_vgg8.yaml", beta=6.0),
        ("vgg13", "mobilenet_v2"): _by_pair(f"{_DKD}/vgg13_mv2.yaml", beta=6.0),
        ("wrn_40_2", "wrn_16_2"): _by_pair(f"{_DKD}/wrn40_2_wrn_16_2.yaml", beta=6.0),
        ("wrn_40_2", "wrn_40_1"): _by_pair(f"{_DKD}/wrn40_2_wrn_40_1.yaml", beta=6.0),
    },
    "reviewkd": {
        ("resnet56", "resnet20"): _by_pair(_REVIEW, weight=0.6),
        ("resnet110", "resnet32"): _by_pair(_REVIEW, weight=1.0),
        ("resnet32x4", "resnet8x4"): _by_pair(_REVIEW, weight=5.0),
        ("resnet32x4", "shufflenet_v1"): _by_pair(_REVIEW, weight=5.0),
        ("resnet32x4", "shufflenet_v2"): _by_pair(_REVIEW, weight=8.0),
        ("wrn_40_2", "wrn_16_2"): _by_pair(_REVIEW, weight=5.0),
        ("wrn_40_2", "wrn_40_1"): _by_pair(_REVIEW, weight=5.0),
        ("wrn_40_2", "shufflenet_v1"): _by_pair(_REVIEW, weight=5.0),
    },
    "logit_standardisation": {  # its logs are named by method, pair, temperature and weight
        ("vgg13", "vgg8"): _by_pair(f"{_LS} logs/KD/kd,vgg13,vgg8,3,9.txt", temperature=3.0),
        ("vgg13", "mobilenet_v2"): _by_pair(
            f"{_LS} logs/KD/kd,vgg13,MobileNetV2,3,9.txt", temperature=3.0
        ),
        ("cifar_resnet50", "mobilenet_v2"): _by_pair(
            f"{_LS} logs/KD/kd,ResNet50,MobileNetV2,3,1.txt", temperature=3.0, weight=1.0
        ),
    },
}
PAIRS: dict[str, dict[str, dict[Pair, Fields]]] = {
    **dict.fromkeys(("cifar100", "cifar10", "cinic10", "tiny_imagenet"), _CIFAR_PAIRS),
    "imagenet": {
        "dkd": {
            ("resnet50", "mobilenet_v2"): _by_pair(
                f"{_MDISTILLER} configs/imagenet/r50_mv2/dkd.yaml", beta=2.0
            )
        }
    },
}
# The rest of ImageNet's recipe; at batch 512 the same files have the rate 0.2.
IMAGENET_RECIPE: Fields = {
    "optim": {
        "epochs": 100, "batch": 256, "lr": 0.1, "weight_decay": 1e-4, "milestones": [30, 60, 90],
    },
    "crop": {"scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3]},
    "source": f"{_R34}; crops as torchvision's RandomResizedCrop",
}  # fmt: skip
IMAGENET_BY_METHOD: dict[str, Fields] = {
    "spherical_kd": {
        "optim": {"milestones": [30, 60, 80, 90]},
        "crop": {"scale": [0.1, 1.0], "ratio": [0.8, 1.25]},
        "source": "forjiuzhou/Spherical-Knowledge-Distillation skd_main.py",
    },
}


def is_known(name: str) -> bool:
    """True for the name of a method, or an alias."""
    return name in METHODS


def changes(data: str, name: str) -> Fields:
    """The changes that a method's source makes to the recipe of these data."""
    return IMAGENET_BY_METHOD.get(METHODS.canonical(name), {}) if data == "imagenet" else {}


def has_source(data: str, name: str) -> bool:
    """True where a source has values for a method on these data."""
    return METHODS.canonical(name) in VALUES[data]


def values(data: str, name: str, pair: Pair | None = None) -> Fields:
    """All fields of a method and `label_weight`, for a (teacher, student) where one is given."""
    name = METHODS.canonical(name)
    by_pair = PAIRS[data].get(name, {}).get(pair, {}) if pair is not None else {}
    values = VALUES[data][name] | by_pair
    return {key: value for key, value in values.items() if key != "source"}


def method(data: str, name: str, pair: Pair | None = None) -> Fields:
    """A method as an experiment file has it, with these values."""
    fields = values(data, name, pair)
    del fields["label_weight"]
    return {"name": METHODS.canonical(name), **fields}


def as_base(name: str) -> Fields:
    """The fields in which a method is another one as the base of `sakd`."""
    return {key: value for key, value in AS_BASE.get(name, {}).items() if key != "source"}


def label_weight(data: str, name: str, pair: Pair | None = None) -> Any:
    """`run.label_weight`: None where it is the method's own anyway."""
    weight = values(data, name, pair)["label_weight"]
    return None if weight == METHODS[name].label_weight else weight
