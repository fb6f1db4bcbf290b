"""Pruned networks: the same outputs as with zeros in place, exactly the weights that matter, nothing of ours inside."""

import copy
import io
import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import bayeszoo as bz
from bayeszoo.inference.pruning import pruned_network
from bayeszoo.inference.pruning.pruned_network import EmptyNetworkError, read_chain
from bayeszoo.inference.pruning.sparse_layers import forms
from bayeszoo.inference.pruning.sparsify import sparsify_network

# The first sparse tensor of a process; `sparsify` hides the remark, and some tests make sparse layers themselves.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")

NETS = bz.models.networks
# Sums of at most 1,000 float64 terms of size 1 in another order: 1,000 * 2e-16, and what three layers make of it.
EXACT = 1e-11


def prune(net, masks, x, **options):
    """`sparsify_network` for a network's own weights, all biases point parameters."""
    means = {name: net.get_parameter(name).detach() for name in masks}
    return sparsify_network(net, means, masks=masks, example_input=x, **options)


def random_masks(net, density, generator):
    return {
        name: torch.rand(p.shape, generator=generator) < density
        for name, p in net.named_parameters()
        if name.endswith("weight")
    }


def masked(net, masks):
    """The network with zeros in place, made by hand."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        for name, mask in masks.items():
            other.get_parameter(name).mul_(mask)
    return other.eval()


def filled(net, seed):
    """Weights and biases of size 1 in double precision, so that no constant is near zero by chance."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / math.sqrt(max(1, p[0].numel())))
    return net, generator


def connections(masks):
    """Per layer (units, inputs): whether any number of a kernel, or of a flattened channel, connects the two."""
    found, width = [], None
    for mask in masks.values():
        width = mask.shape[1] if width is None else width
        found.append(mask.reshape(len(mask), width, -1).any(2))
        width = len(mask)
    return found


def live_units(masks):
    """By paths: a unit matters if some input reaches it and it reaches some output. One boolean vector a layer boundary."""
    links = connections(masks)
    reached = [torch.ones(links[0].shape[1], dtype=torch.bool)]
    for link in links:
        reached.append((link & reached[-1]).any(1))
    reaching = [torch.ones(len(links[-1]), dtype=torch.bool)]
    for link in reversed(links):
        reaching.insert(0, (link & reaching[0][:, None]).any(0))
    inner = [a & b for a, b in zip(reached[1:-1], reaching[1:-1], strict=True)]
    return [torch.ones_like(reached[0]), *inner, torch.ones_like(reaching[-1])]


def live_weights(masks):
    """Per layer: non-zero weights from a live unit to a live unit."""
    live = live_units(masks)
    counts = []
    for mask, before, after in zip(masks.values(), live[:-1], live[1:], strict=True):
        kept = mask.reshape(len(mask), len(before), -1)[after][:, before]
        counts.append(int(kept.sum()))
    return counts


def alive(masks):
    return all(count > 0 for count in live_weights(masks))


@pytest.mark.parametrize("seed", range(24))
def test_random_mlps_keep_their_outputs_and_exactly_the_weights_on_a_path(seed):
    generator = torch.Generator().manual_seed(seed)
    widths = torch.randint(2, 14, (int(torch.randint(1, 4, (1,), generator=generator)),), generator=generator).tolist()
    activation = list(NETS.ACTIVATIONS)[seed % 4]
    net, generator = filled(NETS.mlp(9, widths, 3, activation), seed)
    masks = random_masks(net, 0.12 + 0.5 * torch.rand((), generator=generator), generator)
    x = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    if not alive(masks):
        with pytest.raises(EmptyNetworkError):
            prune(net, masks, x)
        return
    found = prune(net, masks, x, format="fastest" if seed % 6 == 0 else "dense")
    with torch.no_grad():
        expected = masked(net, masks)(x)
        torch.testing.assert_close(found.network(x), expected, atol=EXACT, rtol=EXACT)
    assert found.max_difference < EXACT
    live = [int(units.sum()) for units in live_units(masks)]
    assert [layer.shape_left for layer in found.layers] == [(b, a) for a, b in itertools.pairwise(live)]
    assert [layer.left for layer in found.layers] == live_weights(masks)
    assert [layer.nonzero for layer in found.layers] == [int(mask.sum()) for mask in masks.values()]
    assert found.weights == sum(mask.numel() for mask in masks.values())
    assert found.compression == found.weights / sum(int(mask.sum()) for mask in masks.values())
    assert found.notes == ()


def test_the_random_masks_reach_both_outcomes():
    outcomes = set()
    for seed in range(24):
        generator = torch.Generator().manual_seed(seed)
        widths = torch.randint(2, 14, (int(torch.randint(1, 4, (1,), generator=generator)),), generator=generator).tolist()
        net, generator = filled(NETS.mlp(9, widths, 3, list(NETS.ACTIVATIONS)[seed % 4]), seed)
        outcomes.add(alive(random_masks(net, 0.12 + 0.5 * torch.rand((), generator=generator), generator)))
    assert outcomes == {True, False}


@pytest.mark.parametrize("density", [0.02, 0.1])
@pytest.mark.parametrize("format", ["fastest", "dense"])
def test_lenet_5_caffe(density, format):
    net, generator = filled(NETS.lenet_5_caffe(size=20), 3)
    masks = random_masks(net, density, generator)
    masks["conv1.weight"][:7] = False  # seven filters are constants
    masks["conv2.weight"][:, 9:12] = False  # three are not read
    masks["conv2.weight"][5] = masks["fc1.weight"][:, 40:60] = False  # nor are five of the next, and one is a constant
    x = torch.randn(4, 1, 20, 20, generator=generator, dtype=torch.float64)
    found = prune(net, masks, x, format=format)
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), masked(net, masks)(x), atol=EXACT, rtol=EXACT)
    live = [int(units.sum()) for units in live_units(masks)]
    assert live[1] <= 20 - 10
    assert live[2] <= 50 - 6
    assert [layer.shape_left[:1] for layer in found.layers] == [(n,) for n in live[1:]]
    assert [layer.left for layer in found.layers] == live_weights(masks)
    assert found.layers[0].shape_left == (live[1], 1, 5, 5)
    assert found.layers[2].shape_left == (live[3], 4 * live[2])  # 20 x 20 pictures leave 2 x 2 numbers a filter


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, (1, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_every_form_of_a_layer_computes_the_same(stride, padding, bias):
    conv = nn.Conv2d(3, 4, (3, 2), stride=stride, padding=padding, bias=bias)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 3, 6, 7, generator=generator, dtype=torch.float64)
    columns = conv.double()(x).flatten(1).shape[1]
    net, generator = filled(nn.Sequential(conv, nn.Flatten(), nn.Linear(columns, 5, bias=bias)), 1)
    masks = random_masks(net, 0.4, generator)
    masks["0.weight"][:, 1] = False
    masks["2.weight"][:, ::3] = False
    net = masked(net, masks)
    chain = read_chain(net, ["0", "2"], x)
    with torch.no_grad():
        for name, layer in chain.layers.items():
            expected = layer.module(x)
            made = forms(layer, x)
            assert set(made) == {"dense", "gathered", "sparse"}
            for form, module in made.items():
                out = module(x)
                torch.testing.assert_close(out, expected, atol=EXACT, rtol=EXACT, msg=f"{name}, {form}")
                assert out.is_contiguous() or layer.following is not None
            x = net[1](expected)


def test_a_constant_unit_moves_into_the_next_bias():
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([0.7, -0.3], dtype=torch.float64))
        net[2].weight.copy_(torch.tensor([[2.0, 3.0]]))
        net[2].bias.fill_(0.5)
    masks = {"0.weight": torch.tensor([[False, False], [True, True]]), "2.weight": torch.ones(1, 2, dtype=torch.bool)}
    found = prune(net, masks, torch.randn(3, 2, dtype=torch.float64), format="dense")
    assert found.network[0].weight.shape == (1, 2)
    assert found.network[2].weight.tolist() == [[3.0]]
    assert found.network[2].bias.item() == pytest.approx(0.5 + 2 * math.tanh(0.7), abs=1e-15)


def test_a_constant_gives_a_layer_without_bias_one():
    net = nn.Sequential(nn.Linear(2, 2), nn.SiLU(), nn.Linear(2, 1, bias=False)).double()
    masks = {"0.weight": torch.tensor([[False, False], [True, True]]), "2.weight": torch.ones(1, 2, dtype=torch.bool)}
    found = prune(net, masks, torch.randn(3, 2, dtype=torch.float64), format="dense")
    silu = net[0].bias[0].sigmoid() * net[0].bias[0]
    assert found.network[2].bias.item() == pytest.approx((net[2].weight[0, 0] * silu).item(), abs=1e-15)
    quiet = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    assert prune(quiet, masks, torch.randn(3, 2, dtype=torch.float64), format="dense").network[2].bias is None


def conv_pair(between=(), **options):
    """Two convolutions, the first with one constant and one live filter."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), *between, nn.Conv2d(2, 2, 3, **options), nn.Flatten(), nn.LazyLinear(2)).double()
    x = torch.randn(3, 1, 12, 12, dtype=torch.float64)
    net(x)
    net, _ = filled(net, 5)
    last = str(1 + len(between))
    masks = {"0.weight": torch.ones(2, 1, 3, 3, dtype=torch.bool), f"{last}.weight": torch.ones(2, 2, 3, 3, dtype=torch.bool)}
    masks["0.weight"][0] = False
    return net, masks, x


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize(
    ("between", "options", "bias", "left"),
    [
        ((), {}, 0.6, 1),
        ((), {"padding": "valid"}, 0.6, 1),
        ((), {"padding": 1}, 0.6, 2),  # the border sees zeros beside the constant: it must stay
        ((), {"padding": "same"}, 0.6, 2),
        ((), {"padding": 1}, 0.0, 1),
        ((nn.ReLU(),), {"padding": 1}, -0.6, 1),
        ((), {"padding": 1, "padding_mode": "replicate"}, 0.6, 1),
        ((nn.MaxPool2d(3, 2, padding=1),), {}, 0.6, 1),
        ((nn.AvgPool2d(3, 2, padding=1),), {}, 0.6, 2),  # zeros at the border count
        ((nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),), {}, 0.6, 1),
        ((nn.AvgPool2d(2, divisor_override=3),), {}, 0.6, 2),
        ((nn.AdaptiveAvgPool2d(5), nn.GELU(), nn.Dropout2d()), {}, 0.6, 1),
    ],
)
def test_constants_before_a_convolution(between, options, bias, left):
    net, masks, x = conv_pair(between, **options)
    with torch.no_grad():
        net[0].bias.fill_(bias)
        found = prune(net, masks, x, format="dense")
        torch.testing.assert_close(found.network(x), masked(net, masks)(x), atol=EXACT, rtol=EXACT)
    assert found.layers[0].shape_left[0] == left
    assert found.layers[1].shape_left[1] == left
    assert found.notes == ()


@pytest.mark.parametrize("make", [nn.Conv1d, nn.Conv3d])
def test_other_dimensions(make):
    dims = 1 if make is nn.Conv1d else 3
    pool = nn.MaxPool1d(2) if dims == 1 else nn.MaxPool3d(2)
    net = nn.Sequential(make(2, 6, 3), nn.ReLU(), pool, make(6, 5, 2), nn.ELU(), nn.Flatten(), nn.Linear(5 * 2**dims, 3))
    net, generator = filled(net, 2)
    masks = random_masks(net, 0.3, generator)
    masks["0.weight"][1] = masks["3.weight"][:, 2] = False
    x = torch.randn(3, 2, *[8] * dims, generator=generator, dtype=torch.float64)
    found = prune(net, masks, x)
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), masked(net, masks)(x), atol=EXACT, rtol=EXACT)
    assert [layer.left for layer in found.layers] == live_weights(masks)
    assert found.layers[0].shape_left[0] <= 4


def test_nested_sequences_with_dropout_keep_their_names():
    inner = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(inplace=True))
    net, generator = filled(nn.Sequential(nn.Flatten(), nn.Sequential(inner, nn.Sequential()), nn.Linear(8, 2)), 4)
    masks = random_masks(net, 0.5, generator)
    masks["1.0.0.weight"][3:] = False
    x = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64)
    found = prune(net, masks, x, format="dense")
    assert found.network[1][0][0].weight.shape == (int(live_units(masks)[1].sum()), 6)
    assert set(found.network.state_dict()) == set(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), masked(net, masks)(x), atol=EXACT, rtol=EXACT)


def test_point_layers_keep_their_shapes():
    net = nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 2)
    )
    net, generator = filled(net, 6)
    masks = random_masks(nn.Sequential(net[0]), 0.5, generator)
    masks["5.weight"], masks["6.weight"] = torch.rand(5, 5) < 0.3, torch.rand(2, 5) < 0.5
    masks["0.weight"][2] = masks["6.weight"][:, 1] = False
    masks["6.weight"][:, 0] = masks["5.weight"][0, 0] = True
    x = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    found = prune(net, masks, x, format="dense")
    assert [layer.name for layer in found.layers] == ["0", "5", "6"]
    assert found.layers[0].shape_left == (6, 4)  # batch norm reads every unit
    assert found.layers[1].shape_left[0] < 5
    assert torch.equal(found.network[3].weight, net[3].weight)
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), masked(net, masks)(x), atol=EXACT, rtol=EXACT)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return x + self.fc(x).relu()


def test_zeros_stay_in_place_outside_of_chains():
    net, generator = filled(nn.Sequential(nn.Linear(4, 5), Residual(5), nn.Linear(5, 2)), 7)
    masks = random_masks(net, 0.5, generator)
    masks["1.fc.weight"][:] = False  # passed by
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    found = prune(net, masks, x)
    assert [layer.form for layer in found.layers][1] == "in place"
    assert found.layers[0].shape_left == (5, 4)
    assert len(found.notes) == 1
    assert "'1.fc'" in found.notes[0]
    assert torch.equal(found.network[1].fc.weight, torch.zeros(5, 5, dtype=torch.float64))
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), masked(net, masks)(x), atol=EXACT, rtol=EXACT)
    assert "note: layer '1.fc'" in str(found)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc2(self.fc1(x).tanh())


def test_networks_with_a_forward_of_their_own_are_only_masked():
    net, generator = filled(Plain(), 8)
    masks = random_masks(net, 0.5, generator)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    found = prune(net, masks, x)
    assert [layer.form for layer in found.layers] == ["in place", "in place"]
    assert found.max_difference == 0
    assert found.stored == found.weights
    masks["fc1.weight"][:] = False
    with pytest.raises(EmptyNetworkError, match="layer 'fc1'"):
        prune(net, masks, x)


def test_shared_and_hooked_layers_are_left_alone():
    shared = nn.Linear(4, 4)
    net, generator = filled(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), 9)
    net[3].register_forward_hook(lambda module, inputs, out: out + 1)
    masks = random_masks(net, 0.6, generator)
    masks["3.weight"][0] = False
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    found = prune(net, masks, x)
    assert [layer.name for layer in found.layers if layer.form == "in place"] == ["0", "3"]
    assert ["'0'" in found.notes[0], "'3'" in found.notes[1], len(found.notes)] == [True, True, 2]
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), masked(net, masks)(x), atol=EXACT, rtol=EXACT)


def test_a_network_that_is_one_layer():
    net, generator = filled(nn.Linear(5, 2), 10)
    x = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    masks = {"weight": torch.tensor([[True, False, False, False, True]] * 2)}
    found = prune(net, masks, x)
    assert found.nonzero == 4
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), masked(net, masks)(x), atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize(("empty", "named"), [("fc1", "fc1"), ("fc2", "fc2"), ("fc3", "fc3"), ("apart", "fc2")])
def test_an_empty_network_names_its_layer(empty, named):
    net, _ = filled(NETS.mlp(4, [3, 3], 2), 11)
    masks = {f"fc{k}.weight": torch.ones_like(net.get_parameter(f"fc{k}.weight"), dtype=torch.bool) for k in (1, 2, 3)}
    if empty == "apart":  # the second layer reads only what the first does not feed
        masks["fc1.weight"][0] = False
        masks["fc2.weight"][:, 1:] = False
    else:
        masks[f"{empty}.weight"][:] = False
    with pytest.raises(EmptyNetworkError, match=rf"layer '{named}' has no weight left.*higher threshold") as caught:
        prune(net, masks, torch.randn(3, 4, dtype=torch.float64))
    assert caught.value.layer == named


def test_log_alpha_decides():
    net = NETS.mlp(3, [], 2)
    mean = torch.tensor([[1.0, -2.0, 0.0], [0.5, 4.0, 1e-3]])
    log_alpha = torch.tensor([[2.9, 3.1, -50.0], [-8.0, 30.0, 3.0 - 1e-3]])
    sd = (log_alpha / 2).exp() * mean.abs()
    sd[0, 2] = 1e-9  # around a mean of zero any noise is infinitely larger
    means = {"fc1.weight": mean, "fc1.bias": torch.tensor([0.25, -1.0])}
    sds = {"fc1.weight": sd, "fc1.bias": torch.tensor([100.0, 100.0])}
    x = torch.randn(4, 3)
    found = sparsify_network(net, means, sds, example_input=x, format="dense")
    assert found.network.fc1.weight.tolist() == [[1.0, 0.0, 0.0], [0.5, 0.0, pytest.approx(1e-3)]]
    assert found.network.fc1.bias.tolist() == [0.25, -1.0]  # biases keep their means
    assert (found.weights, found.nonzero, found.compression) == (6, 3, 2.0)
    assert sparsify_network(net, means, sds, example_input=x, threshold=40.0).nonzero == 5


@pytest.fixture(scope="module")
def lenet():
    """LeNet-300-100 at the paper's sparsity (98.9, 97.2, 62 %)."""
    net = NETS.lenet_300_100()
    generator = torch.Generator().manual_seed(0)
    masks = random_masks(net, 1.0, generator)
    for name, density in {"fc1.weight": 0.011, "fc2.weight": 0.028, "fc3.weight": 0.38}.items():
        masks[name] = torch.rand(masks[name].shape, generator=generator) < density
    x = torch.randn(128, 1, 28, 28, generator=generator)
    return net, masks, x, prune(net, masks, x)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="sparse products need MKL")
def test_sparsity_pays(lenet):
    _, _, _, found = lenet
    assert found.layers[0].form == "sparse"  # measured 6 times faster than dense: no noise turns that
    assert found.layers[0].seconds["sparse"] < found.layers[0].seconds["dense"]
    assert found.speedup > 1.5  # measured 5
    assert found.dense_bytes / found.bytes > 10  # measured 31
    assert found.layers[0].stored == found.layers[0].left


def test_the_report(lenet):
    net, masks, x, found = lenet
    for kind, module in (("dense_bytes", net), ("bytes", found.network)):
        buffer = io.BytesIO()
        torch.save(module.state_dict(), buffer)
        assert getattr(found, kind) == len(buffer.getvalue())
    assert found.batch_size == len(x)
    assert 0 < found.seconds < found.dense_seconds
    assert found.weights == 784 * 300 + 300 * 100 + 100 * 10
    # float32: four digits below the largest output, far above its rounding of 1e-7
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), masked(net, masks)(x), atol=1e-5, rtol=1e-5)
    table = str(found)
    for text in (
        "fc1",
        "sparsity",
        f"{found.nonzero:,}",
        f"{found.compression:.1f}x",
        "bytes on disk",
        "time an input",
        "faster",
    ):
        assert text in table
    assert "98.9%" in table
    assert found.layers[0].sparsity == 1 - found.layers[0].nonzero / 235_200


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="sparse products need MKL")
def test_the_network_is_torch_alone(lenet, tmp_path):
    _, _, x, found = lenet
    for module in found.network.modules():
        for kind in type(module).__mro__[:-1]:
            assert kind.__module__.split(".")[0] == "torch", kind
    torch.save(found.network, tmp_path / "net.pt")
    torch.save(x, tmp_path / "x.pt")
    script = (
        "import sys\n"
        "sys.modules['bayeszoo'] = sys.modules['pyro'] = None\n"
        "import torch\n"
        "torch.set_num_threads(1)\n"
        "net = torch.load('net.pt', weights_only=False)\n"
        "state = net.state_dict()\n"
        "torch.save(torch.nn.Sequential(net, torch.nn.Softmax(1))(torch.load('x.pt')).detach(), 'out.pt')\n"
        "torch.save(state, 'state.pt')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    with torch.no_grad():
        expected = found.network(x).softmax(1)
    # The same code on the same numbers.
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected, atol=1e-6, rtol=0)
    found.network.load_state_dict(torch.load(tmp_path / "state.pt"))  # plain tensors: weights_only


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="sparse products need MKL")
def test_sparse_layers_train_like_dense_ones():
    net, generator = filled(nn.Sequential(nn.Linear(30, 4)), 12)
    masks = {"0.weight": torch.rand(4, 30, generator=generator) < 0.2}
    x = torch.randn(6, 30, generator=generator, dtype=torch.float64)
    dense = masked(net, masks)
    sparse = forms(read_chain(dense, ["0"], x).layers["0"], x)["sparse"]
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    for module, value in zip((dense, sparse), inputs, strict=True):
        module(value).square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(sparse.bias.grad, dense[0].bias.grad, atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(sparse.values.grad, dense[0].weight.grad[masks["0.weight"]], atol=EXACT, rtol=EXACT)


def test_a_removal_that_would_change_outputs_is_undone(monkeypatch):
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    masks = {"0.weight": torch.tensor([[False, False], [True, True]]), "2.weight": torch.ones(1, 2, dtype=torch.bool)}
    monkeypatch.setattr(pruned_network, "_ELEMENTWISE", ())
    monkeypatch.setattr(pruned_network, "_passes_units", lambda *_: True)  # forgets the activation
    x = torch.randn(3, 2, dtype=torch.float64)
    found = prune(net, masks, x)
    assert [layer.form for layer in found.layers] == ["in place", "in place"]
    assert "all zeros stay in place" in found.notes[0]
    assert found.max_difference == 0
    with torch.no_grad():
        assert torch.equal(found.network(x), masked(net, masks)(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "csr"}, "format must be 'fastest' or 'dense'"),
        ({"threshold": math.nan}, "threshold is the largest log alpha"),
        ({"masks": None}, "give either sds"),
        ({"means": {}}, "means has no weights"),
        ({"means": {"fc9.weight": torch.ones(2, 3)}, "masks": {"fc9.weight": torch.ones(2, 3)}}, "no weights 'fc9.weight'"),
        ({"masks": {"fc1.weight": torch.ones(2)}}, r"a mask of shape \(2, 3\), got \(2,\)"),
        ({"masks": None, "sds": {"fc1.weight": torch.full((2, 3), math.nan)}}, "must be finite"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, message):
    arguments = {"means": {"fc1.weight": torch.ones(2, 3)}, "masks": {"fc1.weight": torch.ones(2, 3)}} | change
    with pytest.raises(ValueError, match=message):
        sparsify_network(NETS.mlp(3, [], 2), example_input=torch.randn(2, 3), **arguments)


def blobs():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = torch.randn(90, 6, generator=generator) + 4 * nn.functional.one_hot(y, 6)
    return bz.data.Data(inputs={"x": x}, observed=y)


@pytest.mark.parametrize(("guide", "prior"), [("mean_field", "normal"), ("sparse_vd", "log_uniform")])
def test_fits(guide, prior):
    data = blobs()
    model = bz.models.BayesianNN(NETS.mlp(6, [8], 3), prior=prior)
    fit = bz.fit(model, data, guide=guide, steps=300, optimizer=0.02, compile=False, progress=False)
    threshold = 0.0 if guide == "mean_field" else 3.0
    found = fit.sparsify(threshold=threshold, batch_size=200)
    assert (found.threshold, found.batch_size) == (threshold, 200)
    moments = fit.guide.factorized_moments()
    values = {}
    for name, (mean, sd) in moments.items():
        keep = 2 * (sd / mean).abs().log() <= threshold
        values[name] = mean * keep if name.endswith("weight") else mean
    kept = [int((v != 0).sum()) for name, v in values.items() if name.endswith("weight")]
    assert [layer.nonzero for layer in found.layers] == kept
    assert found.nonzero < found.weights
    with torch.no_grad():
        expected = fit.model.outputs(values, data.inputs["x"])
        torch.testing.assert_close(found.network(data.inputs["x"]), expected, atol=1e-4, rtol=1e-4)  # float32
        # A fit of separated blobs keeps the weights that separate them.
        assert (found.network(data.inputs["x"]).argmax(1) == data.observed).float().mean() > 0.9
    assert all(parameter.requires_grad for parameter in found.network.parameters())


def test_fits_that_cannot_be_pruned():
    data = blobs()
    model = bz.models.BayesianNN(NETS.mlp(6, [], 3))
    fit = bz.fit(model, data, guide="low_rank", steps=5, compile=False, progress=False)
    with pytest.raises(ValueError, match=r"guide 'low_rank' has no mean and standard deviation .*'sparse_vd'"):
        fit.sparsify()
    coin = bz.fit(bz.models.CoinFlip(), bz.data.load("coin_flips"), guide="mean_field", steps=5, compile=False, progress=False)
    with pytest.raises(ValueError, match="network of a BayesianNN"):
        coin.sparsify()
    with pytest.raises(ValueError, match="batch_size"):
        bz.fit(model, data, guide="mean_field", steps=5, compile=False, progress=False).sparsify(batch_size=0)
