"""Errors of the engine, split by what the caller should do.

KontextError
├── CheckpointError     the weights cannot be used as they lie there: correct the files, then load again
├── BudgetError         the device memory allowed is too little for this model: allow more
├── DeviceError         the device asked for is not there: choose another
├── DeviceTaken         other programs hold the device's memory: try again once they have ended
├── ModelLost           the weights are not where edits need them any more: load the model again
├── NotANumber          the model's result is not a number: check its weights
└── RequestError        one edit was asked for with a value that cannot work; also a ValueError
    ├── ImageError      the bytes are not a picture, or not one that can be read
    └── LoraError       a LoRA file cannot be used with this model
"""

from __future__ import annotations


class KontextError(Exception):
    """Base of everything this package raises on purpose; the message is one line that says what to do."""


class CheckpointError(KontextError):
    """Raised when files are missing, cut short, or do not fit the model."""


class DeviceError(KontextError):
    """Raised when the device asked for does not exist on this machine."""


class DeviceTaken(KontextError):
    """Raised when a model would fit the device, but other programs leave too little of its memory now."""


class BudgetError(KontextError):
    """Raised when a model does not fit the device memory it may use, however its weights are streamed."""


class ModelLost(KontextError):
    """Raised when the weights could not go back to where they were; no further edit can run with this model."""


class NotANumber(KontextError, ArithmeticError):
    """Raised when the model gives NaN or infinities: broken weights, or a precision that they overflow."""


class RequestError(KontextError, ValueError):
    """Raised when an argument of `load` or `edit` has a value that cannot work."""


class ImageError(RequestError):
    """Raised when bytes are not a readable picture: another kind of file, cut short, empty, or too large."""


class LoraError(RequestError):
    """Raised when a LoRA file is none, is damaged, has parts that are not applied, or belongs to another model."""
