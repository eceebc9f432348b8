"""Structs and template instances, read from csrc's sources: what they declare is what is tested."""

from __future__ import annotations

import ctypes
import re
from types import SimpleNamespace

from .build import SOURCES
from .contract import LOGIT_TYPES, Divergence, Feature, LogitType

CONTRACT = ("core/merge.h", "core/objective.h", "core/fdiv.h", "vocab_stats.h",
            "vocab_fdiv.h", "fused_loss.h", "launch_plan.h")  # fmt: skip
FEATURES = {
    "kTeacher": Feature.TEACHER,
    "kLabel": Feature.LABEL,
    "kForwardKl": Feature.FORWARD,
    "kReverseKl": Feature.REVERSE,
    "kStudentEntropy": Feature.STUDENT_ENTROPY,
    "kTeacherEntropy": Feature.TEACHER_ENTROPY,
    "kPowerSum": Feature.POWER,
    "kSoftened": Feature.SOFTENED,
    "kAllFeatures": Feature(255),
}


def _code(name: str) -> str:
    """Without comments."""
    return re.sub(r"//.*", "", (SOURCES / name).read_text())


def _structs() -> dict[str, type[ctypes.Structure]]:
    enums = ("DType", "FDivergence", "SoftTerm", "Weighting", "HardLabel")
    types: dict[str, type] = dict.fromkeys(enums, ctypes.c_int)
    types |= {"int": ctypes.c_int, "bool": ctypes.c_bool, "float": ctypes.c_float,
              "int64_t": ctypes.c_int64, "uint32_t": ctypes.c_uint32}  # fmt: skip
    found: dict[str, type[ctypes.Structure]] = {}
    for header in CONTRACT:
        for name, body in re.findall(r"^struct (\w+) {(.*?)}", _code(header), re.M | re.S):
            declared = re.findall(r"^\s*(?:const )?(\w+)(\*?) (\w+);", body, re.M)
            if any(not star and t not in types for t, star, _ in declared):
                continue  # of the kernels' own
            fields = [(field, ctypes.c_void_p if star else types[t]) for t, star, field in declared]
            found[name] = types[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return found


structs = SimpleNamespace(**_structs())
CudaPlan, FusedPlan = structs.CudaPlan, structs.FusedPlan
SharedMemory = structs.SharedMemory


def _feature_sets(source: str, name: str) -> tuple[Feature, ...]:
    """Those of the array `name`, in its order."""
    known: dict[str, object] = dict(FEATURES)
    declared = r"^constexpr uint32_t (\w+)(\[\])? =\s*(.*?);"
    for constant, array, value in re.findall(declared, _code(source), re.M | re.S):
        text = value.strip().replace("\n", " ")
        known[constant] = eval(f"({text.strip('{}')})" if array else f"({text})", dict(known))
    sets = known[name]
    assert isinstance(sets, tuple)
    return tuple(map(Feature, sets))


STATS_INSTANCES = _feature_sets("cuda/stats_instances.h", "kStatsInstances")
FUSED_INSTANCES = _feature_sets("cuda/fused.cu", "kInstances")


def stats_kernel(dtype: LogitType, features: Feature) -> str:
    """A part of the mangled name."""
    return f"vocab_stats_kernelI{dtype.mangled}Lj{int(features)}E"


def fused_kernel(dtype: LogitType, features: Feature) -> str:
    return f"fused_kernelI{dtype.mangled}Lj{int(features)}E"


def fdiv_kernels(dtype: LogitType, kind: Divergence) -> list[str]:
    arguments = f"I{dtype.mangled}LNS_11FDivergenceE{int(kind)}E"
    gradients = [f"fdiv_gradient_kernel{arguments}Lb{general}E" for general in (0, 1)]
    return [f"11fdiv_kernel{arguments}", *gradients]


def every_kernel() -> list[str]:
    """Every kernel that has a test of its values, by a part of its mangled name."""
    names = ["merge_kernelILb0E", "merge_kernelILb1E", "11loss_kernelE", "add_parts_kernel"]
    for dtype in LOGIT_TYPES:
        names.append(f"vocab_gradient_kernelI{dtype.mangled}E")
        names.append(f"scale_rows_kernelI{dtype.mangled}E")
        names += (stats_kernel(dtype, features) for features in STATS_INSTANCES)
        names += (fused_kernel(dtype, features) for features in FUSED_INSTANCES)
        for kind in Divergence:
            names += fdiv_kernels(dtype, kind)
    return names
