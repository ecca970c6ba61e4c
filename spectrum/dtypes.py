"""Data types by the names that torch gives them. Standard library only."""

from __future__ import annotations

# Bytes per element, of every type that a torch file may hold. "bits8" and the like are raw storage.
ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex128": 16,
    "complex64": 8,
    "complex32": 4,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "bits16": 2,
    "bits8": 1,
    "bits1x8": 1,
    "bits2x4": 1,
    "bits4x2": 1,
}

# The types whose numbers are weights by themselves. All others need a scale, or are no weights.
WEIGHT_DTYPES = ("float64", "float32", "float16", "bfloat16")
