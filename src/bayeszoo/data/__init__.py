"""Data sets for models: shipped, simulated, or made of a table, arrays, image files or a torch dataset.

Every way ends in a frozen `Data`: inputs and observed values by the names of the model's parameters.
"""

from .catalog import available, load
from .dataset import Data
from .idx import read_idx
from .images import from_idx
from .labelled import few_labels
from .scaler import Scaler
from .schema import Column, Schema
from .simulation import simulate
from .streamed import StreamedData, from_dataset
from .table import from_arrays, from_csv, from_frame

__all__ = [
    "Column",
    "Data",
    "Scaler",
    "Schema",
    "StreamedData",
    "available",
    "few_labels",
    "from_arrays",
    "from_csv",
    "from_dataset",
    "from_frame",
    "from_idx",
    "load",
    "read_idx",
    "simulate",
]
