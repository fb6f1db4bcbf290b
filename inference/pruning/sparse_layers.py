"""Forms of one pruned layer, each of torch's own modules, and which of them is the fastest here.

    dense       the layer with the weights that are left
    gathered    the inputs that have a weight are picked first, then dense
    sparse      a product with the weights in compressed rows (CSR); a convolution becomes one over its patches

The last two are traced into `torch.fx.GraphModule`s, so that the network holds nothing of this package. The sparse
weight is put together in every call from three plain tensors (4 microseconds): these can be trained, copied, cast and
saved like any others, which torch's sparse parameters cannot. Torch remarks once a process that CSR is in beta; on a CPU
its products need a build with MKL, and where there is none, sparse is not among the forms.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from .pruned_network import Layer

#: Times that differ by less than this factor count as equal, since those of the same code do; then the smaller form wins.
_EQUAL = 1.05
#: Patches of a sparse convolution hold at most so many numbers.
_MOST_NUMBERS = 2**25
#: Short rounds, and many: other processes disturb some of them, and the best of each counts.
_ROUND_SECONDS, _FEWEST_ROUNDS, _MOST_ROUNDS, _TIMING_SECONDS = 0.0005, 5, 40, 0.3


class _Compressed(nn.Module):
    """A matrix in compressed rows; 32-bit indices take half the room of torch's default and are no slower."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape = tuple(weight.shape)
        rows = weight.to_sparse_csr()
        self.register_buffer("row_starts", rows.crow_indices().int())
        self.register_buffer("columns", rows.col_indices().int())
        self.values = nn.Parameter(rows.values().clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    def product(self, x: Tensor) -> Tensor:
        """(rows, N) of the product with x (columns, N), which is contiguous: torch's other layouts are up to four times slower."""
        # The only constructor of sparse tensors that tracing sees; `torch.sparse_csr_tensor` refuses its stand-ins.
        weight = torch.ops.aten.sparse_compressed_tensor(
            self.row_starts, self.columns, self.values, self.shape, dtype=self.values.dtype, layout=torch.sparse_csr
        )
        if self.bias is None:
            return torch.mm(weight, x)
        return torch.addmm(self.bias.unsqueeze(1), weight, x)


class SparseLinear(_Compressed):
    """A linear layer with few weights.

    Args:
        contiguous: whether the result must be laid out row by row.
    """

    def __init__(self, layer: Layer, contiguous: bool) -> None:
        super().__init__(layer.weight, layer.bias)
        self.contiguous = contiguous

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, units)."""
        out = self.product(x.t()).t()
        return out.contiguous() if self.contiguous else out


class SparseConv2d(_Compressed):
    """A convolution with few weights, as a sparse product with the patches of its input."""

    def __init__(self, layer: Layer, contiguous: bool) -> None:
        super().__init__(layer.weight.flatten(1), layer.bias)
        module = layer.module
        assert isinstance(module, nn.Conv2d)
        assert isinstance(module.padding, tuple)
        self.contiguous = contiguous
        self.kernel, self.stride = module.kernel_size, module.stride
        rows, columns = module.padding
        self.padding = (columns, columns, rows, rows)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, height, width) -> (N, filters, height', width')."""
        if any(self.padding):
            x = functional.pad(x, self.padding)
        patches = x.transpose(0, 1).unfold(2, self.kernel[0], self.stride[0]).unfold(3, self.kernel[1], self.stride[1])
        out = self.product(patches.permute(0, 4, 5, 1, 2, 3).reshape(self.shape[1], -1))
        out = out.view(self.shape[0], x.size(0), patches.size(2), patches.size(3)).transpose(0, 1)
        return out.contiguous() if self.contiguous else out


class Gathered(nn.Module):
    """A dense layer over some of its inputs."""

    def __init__(self, layer: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.register_buffer("inputs", inputs.int())
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(N, all inputs, ...) -> (N, units, ...)."""
        out: Tensor = self.layer(x.index_select(1, self.inputs))  # type: ignore[arg-type]
        return out


def dense_layer(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a plain layer like `module` with other weights."""
    kind = type(module)
    size = (weight.shape[1], weight.shape[0])
    if isinstance(module, nn.Linear):
        layer: nn.Module = nn.Linear(*size, bias=bias is not None, device="meta")
    else:
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        options = {name: getattr(module, name) for name in names}
        layer = kind(*size, **options, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    layer.bias = None if bias is None else nn.Parameter(bias.clone())  # type: ignore[assignment]
    return layer.eval()


def forms(layer: Layer, x: Tensor) -> dict[str, nn.Module]:
    """Return the modules that compute this layer, by the form's name.

    Args:
        x: (N, ...) an example of its input.
    """
    found = {"dense": dense_layer(layer.module, layer.weight, layer.bias)}
    used = (layer.weight.transpose(0, 1).flatten(1) != 0).any(1)
    if not used.all():
        fewer = dense_layer(layer.module, layer.weight[:, used], layer.bias)
        found["gathered"] = fx.symbolic_trace(Gathered(fewer, used.nonzero().squeeze(1)))
    # The next layer of the chain takes any layout, other modules may not.
    contiguous = layer.following is None
    sparse: nn.Module | None = None
    if isinstance(layer.module, nn.Linear):
        sparse = SparseLinear(layer, contiguous)
    elif _can_be_sparse(layer.module, x):
        sparse = SparseConv2d(layer, contiguous)
    if sparse is not None:
        found["sparse"] = fx.symbolic_trace(sparse)
    return {name: module.eval() for name, module in found.items()}


def _can_be_sparse(module: nn.Module, x: Tensor) -> bool:
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return False
    height, width = module.kernel_size
    return module.dilation == (1, 1) and x.numel() * height * width <= _MOST_NUMBERS


def fastest(layer: Layer, x: Tensor) -> tuple[str, nn.Module, dict[str, float]]:
    """Return the fastest form, its module, and the seconds that a call of each form takes on x.

    The modules up to the next layer are timed with it, since they feel how its result is laid out.
    """
    found = forms(layer, x)
    with torch.no_grad():
        for name in list(found):
            try:
                found[name](x)
            except RuntimeError:  # torch builds without sparse products
                if name == "dense":
                    raise
                del found[name]
    seconds = seconds_per_call({name: nn.Sequential(module, *layer.between) for name, module in found.items()}, x)
    equal = [name for name in seconds if seconds[name] <= _EQUAL * min(seconds.values())]
    best = min(equal, key=lambda name: sum(tensor.nbytes for tensor in found[name].state_dict().values()))
    return best, found[best], seconds


def seconds_per_call(modules: Mapping[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Return the least mean time of a call over rounds in which all modules take turns."""
    seconds = dict.fromkeys(modules, float("inf"))
    with torch.no_grad():
        calls = {name: _calls(module, x) for name, module in modules.items()}
        start = time.perf_counter()
        for number in range(_MOST_ROUNDS):
            if number >= _FEWEST_ROUNDS and time.perf_counter() - start > _TIMING_SECONDS:
                break
            for name, module in modules.items():
                seconds[name] = min(seconds[name], _mean_time(module, x, calls[name]))
    return seconds


def _calls(module: nn.Module, x: Tensor) -> int:
    """How many calls fill a round; the first one warms up."""
    module(x)
    return max(1, int(_ROUND_SECONDS / max(_mean_time(module, x, 1), 1e-7)))


def _mean_time(module: nn.Module, x: Tensor, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        module(x)
    return (time.perf_counter() - start) / calls
