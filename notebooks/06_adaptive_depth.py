# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. Adaptive depth
#
# "Can we drop unnecessary computations for easy inputs?" asks the lecture under *Bayesian Control Flow*. It makes
# the number of layers of a residual network a latent variable with a prior that prefers few, and lets the posterior
# decide. Here that is done, summed exactly, and measured: what is saved, and when the answer is still the same.
#
# **Goals.** After this notebook you can
#
# 1. write down the evidence of a network of random depth, and say why it costs one pass;
# 2. read the posterior over depths of an easy and of a hard picture;
# 3. prove that a network may stop before its last layer, by two rules, and say what each can save at best;
# 4. say why a sample of the depth does not adapt to the picture, and what does;
# 5. hold the trade-off of accuracy and computation against networks of fixed depth.

# %%
import math
import time
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # widgets are not needed here

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import spearmanr
from torch.utils.flop_counter import FlopCounterMode

import bayeszoo as bz

plt.rcParams["figure.dpi"] = 80
BLUE, ORANGE, RED, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#888888"

SIZE = "small"  # "full": MNIST and convolutions, best on a GPU. The text is about "small"
SEED = 0

# %% [markdown]
# ## The number of layers is a latent variable
#
# $$z_n \sim p(z), \quad z \in \{0, \dots, L\} \qquad\quad h_0 = \text{stem}(x_n), \quad
# h_l = h_{l-1} + [l \le z_n] \, F_l(h_{l-1})
# \qquad\quad y_n \sim \text{Categorical}(\text{softmax head}(h_L))$$
#
# (The lecture prints $[z \le l]$, which would switch layers *off* as "the number of layers to use" grows.) A residual
# layer that is switched off is the identity, so $h_L = h_z$: the network simply stops after $z$ layers, and one head
# serves all of them. The prior is geometric, each further layer $r$ times as probable as the last one:
#
# $$p(z) = \frac{r^z}{1 + r + \dots + r^L}$$
#
# The data must have something to decide. The shipped digits are centred so well that no layer at all is right about
# 95 % of them. So every picture is shown in nine places, moved by up to one pixel in both directions.


# %%
def in_nine_places(data):
    """Every picture moved by -1, 0 and 1 pixels, down and right: nine rows of 64 numbers each."""
    padded = torch.nn.functional.pad(data.inputs["x"].reshape(-1, 8, 8), (1, 1, 1, 1))
    moved = [padded[:, down : down + 8, right : right + 8].flatten(1) for down in range(3) for right in range(3)]
    x = torch.stack(moved, 1).flatten(0, 1)
    return bz.data.Data({"x": x}, data.observed.repeat_interleave(9), name="digits in nine places", num_classes=10)


torch.manual_seed(SEED)
if SIZE == "full":
    train, test = (bz.data.load("mnist", split=split) for split in ("train", "test"))
    net = bz.models.networks.residual_cnn(1, 10, (2, 2, 2), (16, 32, 64), heads="shared")
    steps, places, common = 5000, 1, {"batch_size": 128, "optimizer": 2e-3, "schedule": "cosine"}
else:
    train, test = (in_nine_places(part) for part in bz.data.load("digits").split(2 / 3, seed=SEED))
    net = bz.models.networks.residual_mlp(64, 10, depth=6, width=32, heads="shared")
    steps, places, common = 1000, 9, {"batch_size": 128, "optimizer": 1e-2, "schedule": "cosine"}
common |= {"steps": steps, "seed": SEED, "progress": False, "compile": False}
L = net.depth
x_test, y_test = test.inputs["x"], test.observed
side = math.isqrt(x_test[0].numel())


def standard_error(right):
    """Of an accuracy; the places of one picture are not independent."""
    return float(right.double().reshape(-1, places).mean(1).std()) / (len(right) / places) ** 0.5


print(train)
print(f"{len(train):,} rows to learn from, {len(test):,} to test on; {L} residual layers")

# %% [markdown]
# ## The evidence costs one pass
#
# To learn from $(x, y)$ the depth is summed out:
#
# $$\log p(y \mid x) = \log \sum_{z=0}^L p(z) \, p(y \mid x, z)$$
#
# All $L + 1$ terms come from one pass through the network, with a look at the head after each layer. So nothing
# has to be approximated; the loss of `guide="exact"` is $-\sum_n \log p(y_n \mid x_n)$, as a function of the
# network's weights, which are points here. Below it is written out once more, in double precision.

# %%
model = bz.models.AdaptiveDepthResNet(net, depth_prior="geometric", depth_rate=0.9)
fit = bz.fit(model, train, guide="exact", **common)


def log_joint(fit, data):
    """log p(y_n, z | x_n) for every depth, (N, L + 1), and the probabilities of all classes (N, L + 1, K)."""
    with torch.no_grad():
        log_p = fit.model.net(data.inputs["x"].to(fit.device)).cpu().double().log_softmax(-1)
    return log_p[torch.arange(len(data)), :, data.observed] + fit.model.probs.cpu().double().log(), log_p.exp()


by_hand = -float(log_joint(fit, train)[0].logsumexp(1).sum())
print(f"loss {fit.loss:.4f} nats, the sum by hand {by_hand:.4f}")
assert abs(fit.loss / by_hand - 1) < 1e-5  # single precision
print(fit.diagnose())

# %% [markdown]
# Over $z$ there is nothing to diagnose: $q$ is the posterior. (The optimiser's line is about the weights. A
# thousand steps are not enough for them to settle; all networks below get the same thousand.)
#
# **Before you look:** here is how good each exit is if everybody has to take the same one. Where will the curve bend?

# %%
_, probs = log_joint(fit, test)
prior = fit.model.probs.cpu().double()
exits = (probs.argmax(2) == y_test[:, None]).double()
print("prior   ", *(f"{p:6.3f}" for p in prior))
print("accuracy", *(f"{a:6.3f}" for a in exits.mean(0)), f"  (standard error {standard_error(exits[:, -1]):.3f})")
assert exits[:, -1].mean() - exits[:, 0].mean() > 0.1

# %% [markdown]
# After the first layer, already, and from the third on it is flat. Four rows of five would be right with no
# layer at all, and few need more than two. No single depth suits all.
#
# ## The posterior over depths
#
# $$p(z \mid x, y) = \frac{p(y \mid x, z) \, p(z)}{\sum_{z'} p(y \mid x, z') \, p(z')}$$
#
# **Before you look:** a digit that every exit gets right with probability near one: what is its posterior? And
# the posterior of one that only the deep exits get right?
#
# Columns are the layers that the rule `mode` of the next section takes, with the first two test pictures that take so
# many; bars are $p(z \mid x, y)$ with the true class, dots the prior.

# %%
mode = fit.early_exit(test, rule="mode", batch_size=len(test), repeats=20)
posterior = fit.model.depth_posterior(probs.clamp_min(1e-300).log(), y_test)

shown, used = {}, set()
for depth in range(L, -1, -1):  # a picture appears once, whatever its places take
    first = {int(row) // places: int(row) for row in reversed((mode.layers == depth).nonzero().flatten())}
    shown[depth] = [first[picture] for picture in sorted(first.keys() - used)][:2]
    used |= {row // places for row in shown[depth]}
_, axes = plt.subplots(4, L + 1, figsize=(11.5, 6.2), layout="constrained", height_ratios=[1.5, 1, 1.5, 1], sharey="row")
for column, (depth, rows) in zip(axes.T[::-1], shown.items(), strict=True):
    for (top, below), row in zip((column[:2], column[2:]), rows, strict=True):
        right = mode.label[row] == y_test[row]
        top.imshow(x_test[row].reshape(side, side), cmap="Greys")
        top.set(xticks=[], yticks=[])
        top.set_title(f"a {y_test[row]}, says {mode.label[row]}", size=9, color="black" if right else RED)
        below.bar(range(L + 1), posterior[row], color=[BLUE if z == depth else "#9ecae1" for z in range(L + 1)])
        below.plot(range(L + 1), prior, ".", color=ORANGE, ms=7)
        below.set(xticks=range(L + 1))
    column[0].text(
        0.5, 1.22, f"{depth} layers" if depth != 1 else "1 layer", transform=column[0].transAxes, ha="center", size=12
    )
for ax in axes[1::2, 0]:
    ax.set_ylabel("$p(z \\mid x, y)$")
_ = axes[-1, L // 2].set_xlabel("z")

# %% [markdown]
# For an easy digit all $p(y \mid x, z)$ are near one, so the data say nothing about the depth and the posterior
# is the prior. For a harder one the shallow exits lose their mass. Where the answer is wrong (red), it may be
# the other way round: depths that would have known better keep the mass, and at test time nobody tells. The
# same for four rows of the *training* data in ArviZ, two whose posterior is nearest to the prior, and two of
# the deepest:

# %%
learned_from = torch.softmax(log_joint(fit, train)[0], 1)
order = (learned_from @ torch.arange(L + 1.0, dtype=torch.float64)).argsort(stable=True)
near = (learned_from - prior).abs().sum(1).argsort(stable=True)
tree = fit.to_arviz(500, log_likelihood=False, predictive=False, prior=False)
chosen = torch.cat([near[:2], order[-2:]])
print(az.summary(tree, var_names=["z"], coords={"observation": chosen.tolist()}, kind="stats"), "\n")
print("mean of p(z | x, y), exactly:", *(f"{float(learned_from[n] @ torch.arange(L + 1.0).double()):.2f}" for n in chosen))

# %% [markdown]
# ## Stopping early, with a proof
#
# At test time $y$ is unknown, and the lecture asks for the mode of $J(y, z) = p(y, z \mid x) = p(y \mid x, z)
# \, p(z)$. After $l$ layers $J$ is known for $z \le l$. What is still to come is bounded, because a probability
# is at most one:
#
# $$\textbf{mode:} \quad \max_{y, \, z \le l} J(y, z) \ge \max_{z > l} p(z) \qquad \Rightarrow \qquad
# \text{no deeper } z \text{ can win: stop}$$
#
# One may also ask for the class of $p(y \mid x) = \sum_z J(y, z)$. With $S_l(y) = \sum_{z \le l} J(y, z)$, of
# which $y_1$ has the largest and $y_2$ the second largest,
#
# $$\textbf{marginal:} \quad S_l(y_1) - S_l(y_2) > \sum_{z > l} p(z) \qquad \Rightarrow \qquad
# \text{the leader cannot be overtaken: stop}$$
#
# Neither is an approximation: the answer is that of the whole network, for every input.
#
# **Before you look:** with $r = 0.9$, how sure must the first exit be for `mode` to stop before any layer?
# After how many layers can `marginal` stop at the earliest, however sure all exits are?

# %%
marginal = fit.early_exit(test, rule="marginal", batch_size=len(test), repeats=20)
print(mode, marginal, sep="\n")
joint = probs * prior[:, None]
assert torch.equal(mode.label, joint.flatten(1).argmax(1) % probs.shape[2])
assert torch.equal(marginal.label, joint.sum(1).argmax(1))
earliest = int((prior.cumsum(0) > 0.5).nonzero()[0])
print(f"\nmode stops at once where p(y | x, 0) >= p(1) / p(0) = {prior[1] / prior[0]:.2f}")
print(f"marginal needs more than half of the prior's mass: {earliest} layers at least")
assert int(marginal.layers.min()) >= earliest

# %%
taken = {"mode": mode.layers, "marginal": marginal.layers}
shares = {rule: torch.bincount(layers, minlength=L + 1) / len(test) for rule, layers in taken.items()}
_, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for shift, (rule, share), colour in zip((-0.2, 0.2), shares.items(), (BLUE, ORANGE), strict=True):
    bars = left.bar(np.arange(L + 1) + shift, share, 0.4, color=colour, label=rule)
    left.bar_label(bars, [f"{s:.0%}" if s >= 0.005 else "" for s in share], size=8)
left.set(xlabel="layers taken", ylabel="share of the test data", title="where they leave", ylim=(0, 0.8))
left.legend(frameon=False)
at = [depth for depth in range(L + 1) if (mode.layers == depth).any()]
for exit_at, colour in ((0, RED), (1, ORANGE), (L, BLUE)):
    wrong = [1 - float(exits[mode.layers == depth, exit_at].mean()) for depth in at]
    right.plot(at, wrong, "o-", color=colour, label=f"everybody after {exit_at}")
right.set(xlabel="layers that mode takes", ylabel="share of wrong answers", title="who leaves where", ylim=(0, 1))
right.legend(frameon=False)

shallow = {z: 1 - probs[torch.arange(len(test)), z, y_test] for z in (0, 1)}
for z, error in shallow.items():
    print(f"rank correlation of the layers taken (mode) with 1 - p(y | x, {z}): {spearmanr(mode.layers, error).statistic:.2f}")
assert (shares["mode"] >= 0.05).sum() >= 3
assert all(spearmanr(mode.layers, error).statistic > 0.2 for error in shallow.values())

# %% [markdown]
# `mode` leaves mostly after one layer, with some rows before any and some after two, and those that stay longer
# are those that the shallow exits get wrong. Of the rows that take two layers, half would be wrong with none
# and about one in seven with all six. Those that stay longest are hard for *every* exit.
#
# This is not a matter of course. The stopping rule compares probabilities with the prior's ratio, and with a
# prior of $r = 0.5$ an exit that is half sure is enough. The setting (nine places, $r = 0.9$, one head) is the
# first found, after some thirty others, in which three depths hold at least 5 % of the test data each, the
# whole depth is at least a point better than none, and the layers taken follow the shallow exits' errors. The
# test data were looked at for that choice; it was not made for the accuracies below.
#
# ## A sample does not adapt
#
# The lecture's other proposal is a sample of $(y, z)$. But the class is unknown: summed over it,
#
# $$p(z \mid x) = \sum_y p(y \mid x, z) \, p(z) = p(z)$$
#
# so a sample of the depth is a sample of the *prior*, the same for every picture. What can adapt is a $q(z \mid
# x)$ that was trained beside the network to stand in for $p(z \mid x, y)$, without seeing $y$:
#
# $$-\text{ELBO} = \sum_n \mathbb{E}_{q(z \mid x_n)} \log \frac{q(z \mid x_n)}{p(y_n, z \mid x_n)}
# = -\sum_n \log p(y_n \mid x_n) + \sum_n \text{KL}(q(z \mid x_n) \,\|\, p(z \mid x_n, y_n))$$
#
# The expectation is a sum over $L + 1$ depths (`amortized`), or one draw with the gradient of REINFORCE and a
# learned baseline (`reinforce`).
#
# **Before you look:** three guides, the same network and steps. In which order will their losses be?

# %%
fits = {"exact": fit} | {word: bz.fit(model, train, guide={"z": word}, **common) for word in ("amortized", "reinforce")}


def parts_of_loss(fit):
    """-ELBO, -log evidence, and KL(q || p(z | x, y)), summed over the training data, in nats; q summed out."""
    joint, _ = log_joint(fit, train)
    with torch.no_grad():
        q = fit.guide.probs("z", x=train.inputs["x"].to(fit.device)).cpu().double()
    bound = float((torch.special.xlogy(q, q) - q * joint).sum())
    return bound, -float(joint.logsumexp(1).sum()), float((torch.special.xlogy(q, q) - q * joint.log_softmax(1)).sum())


parts = {"exact": (fit.loss, fit.loss, 0.0)} | {word: parts_of_loss(fits[word]) for word in ("amortized", "reinforce")}
print(f"{'guide of z':11}     -ELBO   -log evidence   KL to p(z | x, y)   seconds")
for word, (bound, evidence, kl) in parts.items():
    print(f"{word:11}  {bound:8.1f}   {evidence:13.1f}   {kl:17.1f}   {fits[word].timings['steps']:7.1f}")
    assert abs(bound - evidence - kl) < 1e-6 * bound

_, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
for (word, one), colour in zip(fits.items(), (BLUE, GREEN, RED), strict=True):
    smooth = np.convolve(one.losses, np.ones(25) / 25, "valid")
    ax.plot(np.arange(len(smooth)) + 25, smooth, color=colour, lw=1.2, label=word)
ax.set(xlabel="step", ylabel="-ELBO, nats", yscale="log", title="mean of 25 steps")
_ = ax.legend(frameon=False)

# %% [markdown]
# REINFORCE pays with noise: its network has seen one exit of each picture at a step, chosen at random, where
# the others have learned from all seven. Between `exact` and `amortized` no bound decides: at the *same*
# weights `exact` is lower, by the KL, but each has found its own weights, and in this run those of `amortized`
# are better by more than its KL is worth. A tighter bound is not a faster way down.
#
# ## Side by side
#
# The networks of fixed depth have the same layers, one exit, and the same steps, batches and learning rate each.
# "Full" is the whole computation of the same answer: all layers and, for the certified rules, all exits.


# %%
class FixedDepth(torch.nn.Module):
    """The first layers of an untrained network and its head."""

    def __init__(self, layers):
        super().__init__()
        self.net, self.layers = bz.models.AdaptiveDepthResNet(net).net, layers  # a copy, untrained
        del self.net.blocks[layers:]

    def forward(self, x):
        h = self.net.stem(x)
        for block in self.net.blocks:
            h = block(h)
        return self.net.exit(h, self.layers)


class Alone:
    """A network of fixed depth, trained: accuracy, operations and time of one pass over the test data."""

    def __init__(self, layers):
        self.layers = layers
        fit = bz.fit(bz.models.BayesianNN(FixedDepth(layers)), train, guide="mle", **common)
        weights = {name: value[0].to(fit.device) for name, value in fit.sample(1).items()}  # a point: all draws are the same
        with torch.no_grad():
            self.right = fit.model.outputs(weights, x_test.to(fit.device)).argmax(1).cpu() == y_test
            with FlopCounterMode(display=False) as counter:
                fit.model.outputs(weights, x_test[:1].to(fit.device))
            self.operations, self.seconds = counter.get_total_flops(), math.inf
            for _ in range(20):
                began = time.perf_counter()
                fit.model.outputs(weights, x_test.to(fit.device)).cpu()
                self.seconds = min(self.seconds, time.perf_counter() - began)
        self.accuracy = float(self.right.double().mean())


alone = {layers: Alone(layers) for layers in (0, 1, 2, 4, L)}
best = max(alone.values(), key=lambda network: network.accuracy)
answers = {
    "mode": mode,
    "marginal": marginal,
    "sample of the prior": fit.early_exit(test, rule="sample", batch_size=len(test), repeats=20),
    "q(z | x), amortized": fits["amortized"].early_exit(test, rule="amortized", batch_size=len(test), repeats=20),
    "q(z | x), reinforce": fits["reinforce"].early_exit(test, rule="amortized", batch_size=len(test), repeats=20),
}
print(f"{'':25}               operations          saved                same     corr. with")
print(f"{'':25} accuracy layers  a row    layers operations  time  as full  1 - p(y | x, 0)")
for name, a in answers.items():
    source = fits["reinforce" if "reinforce" in name else "amortized" if "amortized" in name else "exact"]
    error = 1 - log_joint(source, test)[1][torch.arange(len(test)), 0, y_test]
    r = spearmanr(a.layers, error).statistic if len(a.layers.unique()) > 1 else math.nan
    row = f"{name:25}  {a.accuracy(test):.4f}   {a.layers.double().mean():.2f}  {a.flops:7,.0f}  {a.blocks_saved:6.0%}  "
    print(row + f"{1 - a.flops / a.full_flops:7.0%} {a.time_saved:8.0%}  {a.agreement:7.1%}  {r:8.2f}")
whole = alone[L]
for layers, a in alone.items():
    name = f"fixed depth {layers}, alone" + (", best" if a is best else "")
    row = f"{name:25}  {a.accuracy:.4f}   {layers:.2f}  {a.operations:7,.0f}  {1 - layers / L:6.0%}  "
    print(row + f"{1 - a.operations / whole.operations:7.0%} {1 - a.seconds / whole.seconds:8.0%}")
print(f"standard error of an accuracy: {standard_error(whole.right):.4f}")
assert mode.agreement == marginal.agreement == 1.0
assert best.accuracy > max(a.accuracy(test) for a in answers.values())
sampled = answers["sample of the prior"]
assert sampled.accuracy(test) < mode.accuracy(test) - 0.01
assert abs(spearmanr(sampled.layers, shallow[0]).statistic) < 4 / len(test) ** 0.5  # the sd of a rank correlation of nothing

# %% [markdown]
# What the table says:
#
# - `mode` runs a fifth of the layers and a third of the operations, `marginal` half of both, and neither
#   changes an answer. The measured time (the least of twenty runs) depends on the machine and its other work.
# - The sample of the prior runs twice as many layers as `mode` and is three points worse: it sends hard rows
#   out at once and takes easy ones through all layers. For this row and the next two "same as full" is no
#   certificate; it says that leaving the batch changed nothing.
# - $q(z \mid x)$ adapts, but more coarsely: it is a small network that looks at the pixels and not at the
#   answer so far. It is no worse than `mode` all the same, since its network is the one with the better
#   weights. REINFORCE's $q$ sends every row through exactly one layer, so that it has no correlation with
#   anything.
# - The network of all six layers, trained *alone*, is more than a point better than all of them. It is not the
#   stopping that costs: the whole computation of `mode` and `marginal` gives the same answers. One set of layers
#   and one head have to serve seven exits.
#
# ## One q(z) for all pictures
#
# Under `exact` the gradient of $\log p(y \mid x)$ weighs what an exit is taught by $p(z \mid x, y)$: it learns most from
# the pictures that it explains best already, and what it says about the others is left to the other exits. It may be sure
# of itself and wrong there, and `mode` asks the surest. `global` is one $q(z)$ for all pictures, so that each exit is
# taught by all of them:
#
# $$-\text{ELBO} = \sum_n \Big( \sum_z q(z) \, (-\log p(y_n \mid x_n, z)) + \text{KL}(q(z) \,\|\, p(z)) \Big)$$
#
# As a bound on the evidence it is looser than all the others.
#
# **Before you look:** will `mode` be better or worse for it?

# %%
one_for_all = bz.fit(model, train, guide={"z": "global"}, **common)
with torch.no_grad():
    q = one_for_all.guide.probs("z", x=x_test[:1].to(one_for_all.device))[0].cpu()
taught_by_all = (log_joint(one_for_all, test)[1].argmax(2) == y_test[:, None]).double().mean(0)
print("q(z)    ", *(f"{share:6.3f}" for share in q))
print("accuracy", *(f"{a:6.3f}" for a in taught_by_all))
assert taught_by_all[0] > exits[:, 0].mean() + 0.02
for rule in ("mode", "marginal"):
    a, before = one_for_all.early_exit(test, rule=rule, batch_size=len(test)), answers[rule]
    was = f"under exact {before.accuracy(test):.4f}, {before.layers.double().mean():.2f} layers"
    print(f"{rule:9} {a.accuracy(test):.4f}, {a.layers.double().mean():.2f} layers   {was}")
    assert a.agreement == 1.0

# %% [markdown]
# Every exit is better by itself, the first by five points. The rules gain about half a point, which is one standard error.
# Where classes look alike it decides: on Fashion-MNIST, under `global`, `mode` is a quarter of a point below the whole network trained alone
# and saves three layers of four (`benchmarks/results/early_exit.md`).
#
# ## Accuracy against computation
#
# How much to save is the prior's decision. **Before you look:** what becomes of `mode`, and what of `marginal`, as
# $r$ goes to one, that is as the prior stops caring about depth?

# %%
ratios = (0.5, 0.7, 0.9, 0.98)
swept = {}
for ratio in ratios:
    another = bz.models.AdaptiveDepthResNet(net, depth_prior="geometric", depth_rate=ratio)
    one = fit if ratio == 0.9 else bz.fit(another, train, guide="exact", **common)
    swept[ratio] = {rule: one.early_exit(test, rule=rule, batch_size=len(test)) for rule in ("mode", "marginal")}
    of = [f"{rule} {a.accuracy(test):.4f} {a.layers.double().mean():5.2f} layers" for rule, a in swept[ratio].items()]
    print(f"r = {ratio:4}   {'   '.join(of)}   same as full {min(a.agreement for a in swept[ratio].values()):.0%}")
assert swept[0.98]["mode"].accuracy(test) > swept[0.5]["mode"].accuracy(test) + 0.01
assert all(a.agreement == 1.0 for pair in swept.values() for a in pair.values())

_, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
for rule, colour in (("mode", BLUE), ("marginal", ORANGE)):
    at = [(swept[ratio][rule].flops, swept[ratio][rule].accuracy(test)) for ratio in ratios]
    ax.plot(*zip(*at, strict=True), "o-", color=colour, label=f"{rule}, $r$ from {ratios[0]} to {ratios[-1]}")
    for ratio, (x, y) in zip(ratios, at, strict=True):
        ax.annotate(
            f"{ratio:g}",
            (x, y),
            (0, -13 if rule == "mode" else 7),
            textcoords="offset points",
            size=8,
            ha="center",
            color=colour,
        )
operations = [a.operations for a in alone.values()]
bars = [standard_error(a.right) for a in alone.values()]
ax.errorbar(
    operations,
    [a.accuracy for a in alone.values()],
    bars,
    fmt="s--",
    color=GREY,
    lw=1,
    capsize=2,
    label=f"fixed depth {', '.join(map(str, alone))}, trained alone",
)
ax.set(xlabel="operations a row", ylabel="accuracy on the test data")
_ = ax.legend(frameon=False, loc="lower right")

# %% [markdown]
# As $r$ grows, a certificate of `mode` asks for $p(y \mid x, z) \ge r$, so it runs ever more layers and becomes
# more accurate. `marginal` has to wait for more than half of the prior's mass, which is at once there for $r =
# 0.5$, and three or four layers away for a flat prior; its accuracy hardly moves.
#
# Against the fixed networks: below the price of one layer they win, because an exit before any layer that has
# to share its head is a poor one. Around the price of two layers both rules are as good as a network that was
# built for that price or better, by about one standard error. From four layers on the fixed networks win: with
# the whole budget to spend, train a network of six layers. What the adaptive one has is that it is *one*
# network for several budgets, and that it says which rows are hard.
#
# ## Uncertain weights as well
#
# The weights may be latent, too, with a family of their own; the depth is still summed out, given the weights.
# The certificates hold for the average of $p(y \mid x, z)$ over draws of the weights, which is at most one as
# well. Nine places of one picture are not nine observations, and a posterior over weights would believe that
# they are: here each picture is learned from once, in a place of chance.

# %%
place = torch.randint(places, (len(train) // places,), generator=torch.Generator().manual_seed(SEED))
rows = torch.arange(len(place)) * places + place
once = bz.data.Data({"x": train.inputs["x"][rows]}, train.observed[rows], name="each picture once", num_classes=10)
uncertain = bz.models.AdaptiveDepthResNet(net, depth_prior="geometric", depth_rate=0.9, prior="normal", bayesian="last")
short = common | {"steps": steps // 2}
points = bz.fit(model, once, guide="exact", **short)
both = bz.fit(uncertain, once, guide={"weights": "mean_field", "z": "exact"}, **short)
for one in (points, both):
    a = one.early_exit(test, rule="mode", n=10, batch_size=len(test), repeats=1)
    print(
        f"{one.settings.guide:27} accuracy {a.accuracy(test):.4f}, {a.layers.double().mean():.2f} layers, same as full {a.agreement:.1%}"
    )
    assert a.agreement == 1.0

# %% [markdown]
# Both are right about 85 % of the rows, after half the steps on a ninth of them. With an uncertain head the
# network goes deeper: an average over draws is less sure than a point, and to be sure is what the certificate
# asks for. Only the head's weights are latent here. `bayesian="all"` takes more steps than a notebook has: with
# as many as here it was right about every second row.
#
# ## Experts
#
# With a head for each depth the same evidence has another optimum.
#
# **Before you look:** the sum $\sum_z p(z) \, p(y \mid x, z)$ is large if *one* of its terms is. Does it ask
# each exit to be good?

# %%
torch.manual_seed(SEED)
heads = bz.models.networks.residual_mlp(side**2, 10, depth=6, width=8, heads="each")
several = bz.models.AdaptiveDepthResNet(heads, depth_prior="geometric", depth_rate=0.9)
for words in ("exact", {"z": "amortized"}):
    one = bz.fit(several, train, guide=words, **common)
    _, p = log_joint(one, test)
    each = (p.argmax(2) == y_test[:, None]).double().mean(0)
    rules = {
        rule: one.early_exit(test, rule=rule, batch_size=len(test), repeats=1).accuracy(test) for rule in ("mode", "marginal")
    }
    if words == "exact":
        assert rules["marginal"] > max(float(each.max()), rules["mode"]) + 0.02
    print(f"{words!s:20} exits", *(f"{a:.3f}" for a in each), "  ", *(f"{rule} {a:.3f}" for rule, a in rules.items()))

# %% [markdown]
# It does not. Under the exact evidence the exits have become experts: together (`marginal`) they are right far
# more often than the best of them alone. `mode` listens to the one that is most sure, and is caught by those
# that are sure of what they never learned. The expectation over $q(z \mid x)$, which cannot see $y$, asks every
# exit that $q$ uses to be good: the exits improve with depth, and a vote is worth no more than the last one.
# With one head for all depths, as above, there is less room for experts.
#
# ## What worked, and what did not
#
# - The posterior over depths is exact and costs one pass; the certificates hold, for every row, and save what
#   the prior allows them to.
# - The depth an input takes means something here: `mode` sends rows deeper that the first exits get wrong. It
#   took a search to find such a setting. With the centred digits no layer is needed; with convolutions and
#   averaged pictures the exit before the first layer was bad for all rows alike, so its error said nothing
#   about depth.
# - On MNIST, with a net eight layers deep and 128 wide, `mode` is 0.2 points below the whole net trained alone and saves
#   more than half of the time (`benchmarks/results/early_exit.md`).
# - Most of the saving is in easy rows that any shallow network would have got right, and rows that stay longest
#   are often wrong anyway.
# - A network of fixed depth, trained alone with the same budget, is better where there is time for four layers
#   or more.
# - Of the guides, the sum over $q(z \mid x)$ trains as well as the exact evidence. REINFORCE is worse at the
#   same number of steps.
#
# ## Exercise
#
# 1. Sweep $r$ with `guide={"z": "amortized"}` in place of `"exact"`, and draw the curve into the figure. Is
#    `mode` better for it?
# 2. Give `AdaptiveDepthResNet` the prior `[0, 0, 0, 0, 0, 0, 1]`. Which network is that? How many layers can
#    `mode` save, and why not one?
# 3. Keep the weights of `fit`, and compute the answers of `mode` from `probs` with the prior of $r = 0.98$. How
#    far are they from those of the network that was trained with it?
# 4. One depth for all rows: `scope="data"`, with `guide={"z": "global"}`. Look at `fit.guide.probs("z")`. How sure
#    are ten thousand rows of one depth, and what is left of the early exit?
