"""Labels as the models want them."""

from torch import Tensor


def check_labels(y: Tensor, num_classes: int) -> None:
    """Raise ValueError unless y holds one whole number from 0 to num_classes - 1 an observation."""
    if y.dim() != 1:
        raise ValueError(f"classes must have the shape (N,), got {tuple(y.shape)}; give one label an observation")
    low, high = float(y.min()), float(y.max())
    if low < 0 or high >= num_classes or not bool((y == y.round()).all()):
        raise ValueError(
            f"labels must be whole numbers from 0 to {num_classes - 1}, one for each output of the network, and they run from "
            f"{low:g} to {high:g}; give another network or other labels"
        )


def check_several(y: Tensor) -> None:
    """Raise ValueError where all labels are of one class."""
    if bool((y == y[0]).all()):
        raise ValueError(
            f"all {len(y)} labels are {float(y[0]):g}: with one class only there is nothing to learn; give data with more"
        )
