"""The numbers that a model is made with: read once, checked once, kept as buffers.

Python numbers become float64, so that no digit of what was written is lost; tensors keep their dtype. The models cast
them to the dtype of the data. Every setting is copied: no call and no fit can reach the caller's tensor through
the model.
"""

import math

import torch
from torch import Tensor


def read(name: str, value: float | list[float] | Tensor) -> Tensor:
    """Return a finite floating copy of a setting; ValueError otherwise."""
    tensor = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, but is {_shown(tensor)}; give finite numbers")
    return tensor


def number(name: str, value: float | Tensor) -> Tensor:
    """Return a setting that is one finite number."""
    tensor = read(name, value)
    if tensor.dim() != 0:
        raise ValueError(f"{name} must be one number, but has the shape {tuple(tensor.shape)}; give a number")
    return tensor


def positive(name: str, value: float | Tensor) -> Tensor:
    """Return a setting that is one finite number above zero."""
    tensor = number(name, value)
    if not float(tensor) > 0.0:
        raise ValueError(f"{name} must be above zero, but is {_shown(tensor)}; give a positive number")
    return tensor


def vector(name: str, value: float | list[float] | Tensor, length: int) -> Tensor:
    """Return one number for each of `length` coefficients, `(length,)`; a single number serves them all."""
    tensor = read(name, value)
    if tensor.dim() == 0:
        return tensor.repeat(length)
    if tensor.shape != (length,):
        raise ValueError(
            f"{name} must be one number or {length} numbers, one for each coefficient, but has the shape "
            f"{tuple(tensor.shape)}; mind that the intercept, where there is one, comes first and counts"
        )
    return tensor


def scale(name: str, value: float | list[float] | Tensor, length: int) -> Tensor:
    """Return standard deviations `(length,)`, or a covariance's lower Cholesky factor `(length, length)`."""
    tensor = read(name, value)
    if tensor.dim() != 2:
        tensor = vector(name, tensor, length)
        if not bool((tensor > 0).all()):
            raise ValueError(f"{name} must be above zero, but its smallest is {_shown(tensor.min())}; give positive numbers")
        return tensor
    if tensor.shape != (length, length):
        raise ValueError(f"{name} as a matrix must be {length} x {length}, but has the shape {tuple(tensor.shape)}")
    if not bool((tensor.diagonal() > 0).all()) or not torch.equal(tensor, tensor.tril()):
        raise ValueError(
            f"{name} as a matrix must be a lower Cholesky factor, zero above a positive diagonal; "
            "take torch.linalg.cholesky of the covariance"
        )
    return tensor


def plain(value: Tensor) -> float | list[float]:
    """Return a setting as numbers and lists, as JSON holds them."""
    numbers: float | list[float] = value.tolist()
    return numbers


def _shown(tensor: Tensor) -> str:
    numbers = tensor.flatten().tolist()
    bad = next((x for x in numbers if not math.isfinite(x)), numbers[0])
    return f"{bad:g}"
