"""Executes the PTX that nvcc made, on the CPU, and reports what a GPU would not forgive."""

from .device import Device, DeviceArray, LaunchReport
from .findings import Finding
from .parser import parse
from .profile import Profile, Traffic
from .syntax import Module, UnsupportedPtxError

__all__ = [
    "Device",
    "DeviceArray",
    "Finding",
    "LaunchReport",
    "Module",
    "Profile",
    "Traffic",
    "UnsupportedPtxError",
    "parse",
]
