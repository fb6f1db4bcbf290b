"""A fitted Bayesian network as an ordinary torch network without the weights that are noise.

    log alpha = log sigma^2 - log mu^2 > threshold    the weight is zero
    otherwise                                         the weight is mu

At the usual threshold 3 a pruned weight has sigma > 4.5 |mu|, in dropout's words a rate above 0.95. Zeros then take units
with them (`pruned_network`), and each layer takes the form that is the fastest on this machine (`sparse_layers`).
Biases keep their means and are not counted. Lecture: "Sparse Bayesian Neural Networks"; Molchanov, Ashukha, Vetrov 2017.
"""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .pruned_network import Chain, EmptyNetworkError, Layer, read_chain
from .sparse_layers import dense_layer, fastest, seconds_per_call
from .sparse_network import PrunedLayer, SparseNetwork

FORMATS = ("fastest", "dense")

#: Guides that know mean and standard deviation of each weight by itself.
_FAMILIES = "'sparse_vd', 'gaussian_dropout' or 'mean_field'"


def sparsify(fit: Any, threshold: float = 3.0, batch_size: int = 128, format: str = "fastest") -> SparseNetwork:
    """Turns the posterior means of a fitted `BayesianNN` into a plain torch network without the weights that are noise.

    Args:
        fit: with a guide that knows mean and standard deviation of each weight.
        threshold: weights with log alpha above it become zero.
        batch_size: inputs in one call when forms of a layer are timed; what is the fastest depends on it.
        format: `fastest` takes for each layer the form that takes the least time on this machine's CPU with the threads that
            torch now uses; `dense` keeps to torch's plain layers, which run wherever torch does.

    Returns:
        A `SparseNetwork`; its `network` takes the model's inputs (a table's in standardised units) and returns what the
        network of the model does: logits, log odds or means.

    Raises:
        ValueError: for other models and guides, and for a network without a path from inputs to outputs.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is the number of inputs in a timed call, at least 1, got {batch_size!r}")
    net, means, sds, x = _read(fit, batch_size)
    return sparsify_network(net, means, sds, example_input=x, threshold=threshold, format=format)


def emptiness(fit: Any, threshold: float = 3.0) -> EmptyNetworkError | None:
    """Why `sparsify` would find an empty network; None where something of the inputs gets through, or nothing can be pruned."""
    if not hasattr(fit.guide, "log_alpha"):
        return None
    try:
        net, means, sds, x = _read(fit, 2)
        _chain_left(*_thresholded(net, means, sds, None, threshold), x.detach().cpu())
    except EmptyNetworkError as error:
        return error
    except ValueError:  # biases whose moments the guide does not say
        return None
    return None


def _read(fit: Any, rows: int) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor], Tensor]:
    """The network of a fit, means and sds of its weights and biases, and that many of its inputs."""
    model, guide = fit.model, fit.guide
    net, sites = getattr(model, "net", None), getattr(model, "sites", None)
    if not isinstance(net, nn.Module) or sites is None:
        raise ValueError(f"sparsify prunes the network of a BayesianNN, and this model is {type(model).__name__}; fit one")
    if not hasattr(guide, "factorized_moments"):
        family = fit.run.family or type(guide).__name__
        raise ValueError(
            f"guide '{family}' has no mean and standard deviation of each weight by itself, which decide what is pruned; "
            f"fit with guide={_FAMILIES}"
        )
    with fit.run.owned.active(), torch.no_grad():
        moments = {name: pair for name, pair in guide.factorized_moments().items() if name in sites}
    missing = [name for name in sites if name not in moments]
    if missing:
        raise ValueError(
            f"the guide does not say mean and standard deviation of '{missing[0]}'; leave it out of the latents (biases=False), or "
            f"fit with guide={_FAMILIES}"
        )
    x = fit.data.select(torch.arange(rows) % len(fit.data)).bind(model, observed=False)["x"]
    return net, {name: pair[0] for name, pair in moments.items()}, {name: pair[1] for name, pair in moments.items()}, x


def sparsify_network(
    net: nn.Module,
    means: Mapping[str, Tensor],
    sds: Mapping[str, Tensor] | None = None,
    *,
    example_input: Tensor,
    masks: Mapping[str, Tensor] | None = None,
    threshold: float = 3.0,
    format: str = "fastest",
) -> SparseNetwork:
    """Sets weights of a network to zero and removes what they make superfluous.

    Args:
        net: any network; it is copied.
        means: values of its weights and biases by name ("fc1.weight"); layers that are not named keep what they have.
        sds: standard deviations of the same.
        example_input: (N, ...) inputs, on which times are taken and outputs compared.
        masks: instead of sds, which weights to keep, True, by name.
        threshold: weights with a higher log alpha are zero.
        format: `fastest`, or `dense` for plain layers only.

    Raises:
        EmptyNetworkError: the outputs would not depend on the inputs.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be 'fastest' or 'dense' (plain layers only), got {format!r}")
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or math.isnan(threshold):
        raise ValueError(f"threshold is the largest log alpha of a weight that stays, a number such as 3.0, got {threshold!r}")
    if (sds is None) == (masks is None):
        raise ValueError("give either sds, from which log alpha follows, or masks of the weights to keep")
    dense, names = _thresholded(net, means, sds, masks, threshold)
    x = example_input.detach().cpu()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)
        return _pruned(dense, names, x, None if sds is None else threshold, format)


def _thresholded(
    net: nn.Module,
    means: Mapping[str, Tensor],
    sds: Mapping[str, Tensor] | None,
    masks: Mapping[str, Tensor] | None,
    threshold: float,
) -> tuple[nn.Module, list[str]]:
    """A copy of the network with zeros for the weights that are noise, and the names of its layers."""
    names = [name.removesuffix("weight").removesuffix(".") for name in means if name.split(".")[-1] == "weight"]
    if not names:
        raise ValueError("means has no weights, so there is nothing to prune; name them as the network does, 'fc1.weight'")
    kept = {name: _kept(name, means[name], sds, masks, threshold) for name in map(_weight, names)}
    return _with_values(net, means, kept), names


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _kept(
    name: str, mean: Tensor, sds: Mapping[str, Tensor] | None, masks: Mapping[str, Tensor] | None, threshold: float
) -> Tensor:
    """Which weights stay; a mean of zero has an infinite log alpha, or none."""
    other = (sds if sds is not None else masks or {}).get(name)
    if other is None or other.shape != mean.shape:
        got = "none" if other is None else str(tuple(other.shape))
        raise ValueError(f"'{name}' needs {'an sd' if sds is not None else 'a mask'} of shape {tuple(mean.shape)}, got {got}")
    if sds is None:
        return other.bool()
    if not bool(mean.isfinite().all() and other.isfinite().all() and (other >= 0).all()):
        raise ValueError(f"means and sds of '{name}' must be finite numbers and sds not negative; look at how the fit ended")
    mean, sd = mean.double(), other.double()
    return 2 * (sd.log() - mean.abs().log()) <= threshold


def _with_values(net: nn.Module, means: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the network with these values as parameters, zero where a weight is not kept."""
    net = copy.deepcopy(net).cpu().eval()
    for name, mean in means.items():
        path, _, part = name.rpartition(".")
        try:
            module = net.get_submodule(path)
            old = getattr(module, part)
        except AttributeError:
            raise ValueError(f"the network has no weights '{name}'; name them as its state_dict does") from None
        if old.shape != mean.shape:
            raise ValueError(f"'{name}' has the shape {tuple(old.shape)} in the network, and {tuple(mean.shape)} was given")
        value = torch.where(kept[name], mean, 0) if name in kept else mean
        delattr(module, part)
        module.register_parameter(part, nn.Parameter(value.detach().to("cpu", old.dtype, copy=True)))
    return net


def _pruned(dense: nn.Module, names: list[str], x: Tensor, threshold: float | None, format: str) -> SparseNetwork:
    wanted = dense(x.clone())
    chain = _chain_left(dense, names, x)
    found: dict[str, tuple[str, nn.Module, dict[str, float]]] = {}
    left = x.clone()
    for name, module in chain.modules:
        if name in chain.layers:
            layer = chain.layers[name]
            if format == "dense":
                found[name] = "dense", dense_layer(layer.module, layer.weight, layer.bias), {}
            else:
                form, module, seconds = fastest(layer, left)
                found[name] = form, module, {key: value / len(x) for key, value in seconds.items()}
            module = found[name][1]
        left = module(left)
    network = _replaced(dense, {name: module for name, (_, module, _) in found.items()})
    kept = [name for name in names if name not in found]
    notes = [
        f"layer '{name}' is outside of nn.Sequential, shared, hooked or grouped, so its zeros stay in place" for name in kept
    ]
    difference = float((network(x.clone()) - wanted).abs().max())
    if not difference <= _rounding(dense, x, wanted):
        notes = [f"without its superfluous units the network differs by {difference:.2g}, so all zeros stay in place"]
        network, found, difference = copy.deepcopy(dense), {}, 0.0
    times = seconds_per_call({"dense": dense, "left": network}, x.clone())
    return SparseNetwork(
        network=network,
        threshold=threshold,
        layers=tuple(_described(name, dense, chain.layers.get(name), found.get(name)) for name in names),
        batch_size=len(x),
        threads=torch.get_num_threads(),
        dense_bytes=_bytes(dense),
        bytes=_bytes(network),
        dense_seconds=times["dense"] / len(x),
        seconds=times["left"] / len(x),
        max_difference=difference,
        notes=tuple(notes),
    )


def _chain_left(dense: nn.Module, names: list[str], x: Tensor) -> Chain:
    """The network as a chain without its superfluous units."""
    chain = read_chain(dense, names, x.clone())
    _check_inputs_matter(dense, [name for name in names if name not in chain.layers], x)
    chain.remove_units()
    return chain


def _rounding(net: nn.Module, x: Tensor, out: Tensor) -> float:
    """How much sums in another order may change the outputs: half of their digits, or far more than double precision does."""
    try:
        exact = copy.deepcopy(net).double()(x.double() if x.is_floating_point() else x)
    except RuntimeError:  # a module of the user's that knows one precision
        exact = out
    return float(torch.finfo(out.dtype).eps ** 0.5 * out.abs().max() + 100 * (exact - out).abs().max())


def _check_inputs_matter(net: nn.Module, names: list[str], x: Tensor) -> None:
    """Outside chains an empty layer may be passed by; whether anything passes is seen at other inputs."""
    empty = [name for name in names if not net.get_parameter(_weight(name)).any()]
    if not empty:
        return
    others = [x, torch.zeros_like(x), x.flip(-1)] + ([x + 1] if x.is_floating_point() else [])
    out = torch.cat([net(other.clone()) for other in others])
    if bool((out == out[:1]).all()):
        raise EmptyNetworkError(empty[0])


def _replaced(net: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the network with other modules in some places; their old weights are not copied."""
    if "" in modules:
        return modules[""]
    memo: dict[int, Any] = {id(net.get_submodule(name)): module for name, module in modules.items()}
    return copy.deepcopy(net, memo)


def _described(
    name: str, dense: nn.Module, layer: Layer | None, found: tuple[str, nn.Module, dict[str, float]] | None
) -> PrunedLayer:
    weight = dense.get_parameter(_weight(name))
    nonzero = int(weight.count_nonzero())
    if layer is None or found is None:
        shape = tuple(weight.shape)
        return PrunedLayer(name, "in place", shape, shape, weight.numel(), nonzero, nonzero, weight.numel())
    form, _, seconds = found
    left = int(layer.weight.count_nonzero())
    used = int((layer.weight.transpose(0, 1).flatten(1) != 0).any(1).sum())
    stored = {"dense": layer.weight.numel(), "gathered": layer.weight[:, :1].numel() * used, "sparse": left}[form]
    return PrunedLayer(
        name, form, tuple(weight.shape), tuple(layer.weight.shape), weight.numel(), nonzero, left, stored, seconds
    )


def _bytes(net: nn.Module) -> int:
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    return buffer.tell()
