"""Networks by name, and their files."""

from .build import (
    BACKBONES,
    NAMES,
    SPECIFICATIONS,
    build,
    multiply_adds,
    names_for,
    specified,
    teacher_of,
)
from .files import KNOWN, load, load_teacher, open_network, save

__all__ = [
    "BACKBONES",
    "KNOWN",
    "NAMES",
    "SPECIFICATIONS",
    "build",
    "load",
    "load_teacher",
    "multiply_adds",
    "names_for",
    "open_network",
    "save",
    "specified",
    "teacher_of",
]
