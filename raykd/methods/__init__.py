"""Table of methods, and `AnyMethod`, the field type that accepts any of them.

`PRELUDES` are the training stages before some methods; experiment files do not name them.
"""

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from raykd.core.open_union import Open
from raykd.core.registry import Registry
from raykd.methods.ab import AB, ABInit
from raykd.methods.ada_distill import AdaDistill
from raykd.methods.aekd import AEKD
from raykd.methods.angular import Angular
from raykd.methods.at import AT
from raykd.methods.base import Method
from raykd.methods.ca_mkd import CAMKD
from raykd.methods.cc import CC
from raykd.methods.combine import Combine
from raykd.methods.cosine_kd import CosineKD
from raykd.methods.crd import CRD
from raykd.methods.ctkd import CTKD
from raykd.methods.dense_distillation import DenseDistillation
from raykd.methods.dist import DIST
from raykd.methods.dkd import DKD
from raykd.methods.ebkd import EBKD
from raykd.methods.ekd import EKD
from raykd.methods.embed_distill import EmbedDistill
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.methods.fitnet import FitNet
from raykd.methods.fsp import FSP, FSPInit
from raykd.methods.ft import FT, FTParaphraser
from raykd.methods.hard_kd import HardKD
from raykd.methods.irg import IRG
from raykd.methods.jacobian import JacobianMatching
from raykd.methods.kd import KD
from raykd.methods.label_only import LabelOnly
from raykd.methods.logit_standardisation import LogitStandardisation
from raykd.methods.margin_distillation import MarginDistillation
from raykd.methods.mimic import MimicEmbedding, MimicLogits
from raykd.methods.mlkd import MLKD
from raykd.methods.multi_head_kd import MultiHeadKD, TeacherHeads
from raykd.methods.nkd import NKD
from raykd.methods.nst import NST
from raykd.methods.ofd import OFD
from raykd.methods.panel_distillation import PanelDistillation
from raykd.methods.pkt import PKT
from raykd.methods.relational_kd import RelationalKD
from raykd.methods.reviewkd import ReviewKD
from raykd.methods.sakd import SAKD
from raykd.methods.sample_contrastive_kd import SampleContrastiveKD
from raykd.methods.simkd import SimKD
from raykd.methods.skd import SKD
from raykd.methods.sp import SP
from raykd.methods.stkd import STKD
from raykd.methods.teacher_free import TeacherFree
from raykd.methods.vid import VID

__all__ = ["METHODS", "PRELUDES", "AnyMethod", "AnyPrelude", "Method"]

METHODS: Registry[type[Method]] = Registry("method")
METHODS.add("label_only", LabelOnly)
# logits
METHODS.add("kd", KD)
METHODS.add("spherical_kd", SKD, ["skd"])
METHODS.add("dkd", DKD)
METHODS.add("nkd", NKD)
METHODS.add("dist", DIST)
METHODS.add("logit_standardisation", LogitStandardisation, ["ls"])
METHODS.add("ctkd", CTKD)
METHODS.add("mlkd", MLKD)
METHODS.add("cosine_kd", CosineKD, ["cswt"])
METHODS.add("sample_contrastive_kd", SampleContrastiveKD, ["ckd"])
METHODS.add("mimic_logits", MimicLogits)
METHODS.add("stkd", STKD)
METHODS.add("hard_kd", HardKD)
METHODS.add("teacher_free", TeacherFree, ["tf_kd"])
# the logits of several teachers
METHODS.add("ebkd", EBKD)
METHODS.add("ca_mkd", CAMKD)
METHODS.add("aekd", AEKD)
# embeddings
METHODS.add("relational_kd", RelationalKD, ["rkd"])
METHODS.add("pkt", PKT)
METHODS.add("cc", CC)
METHODS.add("crd", CRD)
METHODS.add("mimic_embedding", MimicEmbedding)
METHODS.add("feature_distillation", FeatureDistillation)
METHODS.add("embed_distill", EmbedDistill)
METHODS.add("angular", Angular)
METHODS.add("ada_distill", AdaDistill)
METHODS.add("margin_distillation", MarginDistillation)
METHODS.add("ekd", EKD)
# the last map
METHODS.add("dense_distillation", DenseDistillation)
METHODS.add("panel_distillation", PanelDistillation)
# feature maps, and the live teacher
METHODS.add("fitnet", FitNet)
METHODS.add("at", AT)
METHODS.add("sp", SP)
METHODS.add("vid", VID)
METHODS.add("ab", AB)
METHODS.add("ft", FT)
METHODS.add("fsp", FSP)
METHODS.add("nst", NST)
METHODS.add("irg", IRG)
METHODS.add("ofd", OFD)
METHODS.add("reviewkd", ReviewKD)
METHODS.add("multi_head_kd", MultiHeadKD, ["mhkd"])
METHODS.add("simkd", SimKD)
METHODS.add("jacobian", JacobianMatching)

PRELUDES: Registry[type[Method]] = Registry("prelude")
PRELUDES.add("ab_init", ABInit)
PRELUDES.add("ft_paraphraser", FTParaphraser)
PRELUDES.add("fsp_init", FSPInit)
PRELUDES.add("teacher_heads", TeacherHeads)


def _union(table: Registry[type[Method]]) -> Any:
    """Field type of all methods in a table, told apart by `name`, and of those from plugins."""
    members = Union[tuple(table.values())]  # noqa: UP007
    return Annotated[members, Field(discriminator="name"), Open(table)]


# `combine` and `sakd` wrap the methods that were added before them.
Combine.model_rebuild(_types_namespace={"AnyPart": _union(METHODS)})
METHODS.add("combine", Combine)
SAKD.model_rebuild(_types_namespace={"AnyBase": _union(METHODS)})
METHODS.add("sakd", SAKD, ["spot_adaptive_kd"])

if TYPE_CHECKING:  # type checkers see the base class
    AnyMethod = AnyPrelude = Method
else:
    AnyMethod, AnyPrelude = _union(METHODS), _union(PRELUDES)
