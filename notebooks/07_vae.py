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
# # 7. Variational autoencoders
#
# "Generating everything out of nothing": a code $z$ of a few numbers is drawn first, and a network unpacks it
# into a picture. Nobody tells which code belongs to which picture. Generator and inference are learned together,
# by the same runner and the same ELBO as everything before.
#
# **Goals.** After this notebook you can
#
# 1. read a plane of codes, and say where the posterior of a code is known exactly;
# 2. sample, reconstruct, interpolate, and tell which latents a model uses;
# 3. estimate $\log p(x)$ with its error, and say why drawing from the prior does not help;
# 4. split what the ELBO loses into the family's part and the inference network's;
# 5. show where $\log p(x)$ fails to notice what does not belong, and why;
# 6. let pictures without labels help a classifier that has three of each class.

# %%
import time
import warnings
import zlib

warnings.filterwarnings("ignore", message="IProgress not found")  # widgets are not needed here

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

import bayeszoo as bz

plt.rcParams["figure.dpi"] = 80
BLUE, ORANGE, RED, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#888888"

SIZE = "small"  # "full": MNIST with 256 grey levels and larger networks, best on a GPU. The text is about "small"
full = SIZE == "full"

# %%
if full:
    labelled = [bz.data.load("mnist", split=split) for split in ("train", "test")]
    levels, hidden, num_latents, steps, few_steps, compiled = 256, (400, 200), 20, 60_000, 30_000, True
else:
    labelled = bz.data.load("digits").split(0.8, seed=0)
    levels, hidden, num_latents, steps, few_steps, compiled = 17, (128, 64), 8, 2_000, 1_000, False
train, test = (part.unsupervised() for part in labelled)
y_train, y_test = (torch.as_tensor(part.truth["y"]) for part in (train, test))
x_train, x_test = train.observed, test.observed
shape, side = tuple(x_test.shape[1:]), int(x_test[0].numel() ** 0.5)
common = {"batch_size": 128, "optimizer": 3e-3, "schedule": "cosine", "compile": compiled, "progress": False}


def autoencoder(latents, seed=0):
    """A fresh model with networks of its own."""
    torch.manual_seed(seed)
    return bz.models.VAE(shape, latents=latents, likelihood="logistic", levels=levels, hidden=hidden)


def tiles(pictures, columns):
    """Pictures (N, ...) side by side as one, row by row."""
    grid = pictures.detach().reshape(-1, columns, side, side)
    return F.pad(grid, (0, 1, 0, 1), value=0.25).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)


def show(ax, pictures, columns, title=""):
    ax.imshow(tiles(pictures, columns), cmap="Greys", vmin=0, vmax=1)
    ax.set(title=title, xticks=[], yticks=[])


print(train)
print(f"{len(train)} pictures to learn from, {len(test)} held out, {x_test[0].numel()} pixels with {levels} grey levels")

# %% [markdown]
# ## From nothing to a picture and back
#
# $$z \sim \mathcal{N}(0, I), \qquad x_d \sim p(x_d \mid f_\theta(z)), \qquad
# p(x, z) = p(z) \prod_{d=1}^D p(x_d \mid f_\theta(z))$$
#
# (The slide has $p(x \mid z)$ on the left of the last one; it is the joint.) A pixel has 17 grey levels, and its
# distribution is a logistic cut into 17 bins, whose mean and scale the generator puts out. So $p(x)$ is a probability,
# not a density, and $-\log_2 p(x)$ is a code length in bits.
#
# Learning asks for $\log p(x) = \log \int p(x \mid z) \, p(z) \, dz$, which is intractable. The way out is the ELBO with
# $q_\Lambda(z \mid x) = \mathcal{N}(z \mid \mu_\Lambda(x), \text{diag} \, \sigma^2_\Lambda(x))$ from an inference network:
#
# $$\log p(x_n) \;\geq\; \mathbb{E}_{q_\Lambda(z_n \mid x_n)} \log p(x_n \mid z_n)
# - \text{KL}(q_\Lambda(z_n \mid x_n) \,\|\, p(z_n))$$
#
# It is maximised in $\Lambda$, which is inference, and in $\theta$, which is learning. We begin with two latents, because a
# plane can be drawn. The data have no labels: `unsupervised()` has put them aside.

# %%
plane = bz.fit(autoencoder(2), train, guide="amortized", steps=steps, **common)
print(plane)
codes = {part: plane.sample(50, data=data)["z"].mean(0) for part, data in (("train", train), ("test", test))}

# %% [markdown]
# **Before you look:** left, pictures that the generator makes of codes on a grid, spaced so that each stands for the same
# share of the prior. Right, where the inference network puts held-out digits. Will classes have territories, although
# no label was used? Which digits will be neighbours?

# %%
n = 17
quantiles = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(n) + 0.5) / n)
across, up = torch.meshgrid(quantiles, quantiles.flip(0), indexing="xy")
with torch.no_grad():
    grid = plane.model.decode(torch.stack([across, up], -1).reshape(-1, 2).to(plane.device)).cpu()

_, (left, right) = plt.subplots(1, 2, figsize=(12, 5.6), layout="constrained")
show(left, grid, n, "decoded codes, at quantiles of the prior")
for digit in range(10):
    at = codes["test"][y_test == digit]
    right.plot(*at.T, "o", ms=3, color=plt.cm.tab10(digit), alpha=0.7)
    right.text(*at.median(0).values, str(digit), size=15, weight="bold", ha="center", va="center")
_ = right.set(xlabel="$z_1$", ylabel="$z_2$", title="codes of held-out digits", aspect="equal")

# %% [markdown]
# They have, and the borders are where one digit can be bent into another. Two numbers are too few for ten classes, so some
# share a corner.
#
# Two latents also allow what more of them forbid: the posterior can be computed on a grid, and with it the integral,
# $p(x) \approx h^2 \sum_{ij} p(x \mid z_{ij}) \, p(z_{ij})$. That is the truth to hold $q$ and every estimate against.
#
# **Before you look:** the inference network gives an ellipse whose axes are parallel to those of the plane. What would
# the posterior have to look like for this to be wrong?

# %%
width, reach = 0.03, 5.0
line = torch.arange(-reach, reach, width)
lattice = torch.cartesian_prod(line, line)
prior = torch.distributions.Normal(0.0, 1.0)
pixels, generator = plane.model.pixels, plane.model.generator
shown = [int((y_test == digit).nonzero()[k]) for digit in range(10) for k in (0, 1)]
with torch.no_grad():
    outputs = [generator(part.to(plane.device)).cpu() for part in lattice.split(10_000)]
    log_joint = torch.stack(
        [
            torch.cat([pixels.distribution(out, len(shape)).log_prob(x_test[row]) for out in outputs])
            + prior.log_prob(lattice).sum(1)
            for row in shown
        ]
    ).double()
exact = log_joint.logsumexp(1) + 2 * np.log(width)  # log p(x) by quadrature
posterior = (log_joint - log_joint.logsumexp(1, keepdim=True)).exp().reshape(len(shown), len(line), len(line))

picked = test.select(shown)
found = plane.log_marginal(picked, k=2_000)
gaps = exact - found.elbo
draws = plane.sample(1_000, data=picked)["z"]  # (draw, example, latent)
order = gaps.argsort()
_, axes = plt.subplots(1, 4, figsize=(12.5, 3.2), layout="constrained")
for ax, j in zip(axes, (order[0], order[len(order) // 2], order[-3], order[-1]), strict=True):
    mean, sd = draws[:, j].mean(0), draws[:, j].std(0)
    middle = lattice[log_joint[j].argmax()]
    half = max(6 * float(sd.max()), 1.2 * float((middle - mean).abs().max()))
    ax.contour(line, line, posterior[j].T, levels=posterior[j].max().item() * np.array([0.011, 0.135, 0.6]), colors=BLUE)
    ax.plot(*draws[:200, j].T, ".", color=ORANGE, ms=3)
    ax.set(xlim=(mean[0] - half, mean[0] + half), ylim=(mean[1] - half, mean[1] + half), xlabel="$z_1$")
    ax.set_title(f"a {y_test[shown[j]]}: ELBO {gaps[j]:.2f} nats below", size=10)
axes[0].set_ylabel("$z_2$ (blue: exact, orange: q)")
print(f"log p(x) of {len(shown)} digits: exact {exact.mean():.3f}")
for k, estimate in ((2_000, found), (20_000, plane.log_marginal(picked, k=20_000))):
    off, trusted = (estimate.values - exact).abs(), estimate.k_hat < 0.7
    print(
        f"k = {k:6,}: mean {estimate.mean:.3f} ± {estimate.error:.3f}; k-hat below 0.7 for {int(trusted.sum()):2}, off by at most "
        f"{off[trusted].max():.2f} nats or {(off / estimate.errors)[trusted].max():.1f} standard errors; the others by {off[~trusted].max():.2f} nats"
    )
    assert full or off[trusted].max() < 0.3

# %% [markdown]
# The posterior may be slanted, or have a second hill, and now and then $q$ lies next to it. How much that costs comes
# [below](#What-q-costs). The importance-sampled $\log p(x)$ takes $q$ for its proposals alone, and agrees with the integral to
# 0.15 nats wherever k-hat is good. Its standard errors are too small for some: neither they nor k-hat know of a hill that no
# draw has reached.
#
# ## Which examples to trust
#
# The latents of one picture are a posterior like any other. `to_arviz` takes a few pictures, with a dimension for the example,
# and in the group `log_marginal` $\log p(x)$ of each with the k-hat of its weights:

# %%
first = torch.tensor([int((y_train == digit).nonzero()[0]) for digit in range(5)])
tree = plane.to_arviz(1_000, rows=first)
print(az.summary(tree, var_names=["z"], kind="stats"), "\n")
print(tree["log_marginal"].to_dataset().to_dataframe().round(2), "\n")
report = plane.diagnose(n=500, held_out=test)
print(report)

# %% [markdown]
# `diagnose` goes through the pictures one by one, too. One ratio over the latents of all 1,438 would be hopeless for any
# autoencoder: errors of a fraction of a nat in each posterior add up to hundreds. A k-hat above the threshold says that draws of $q$
# miss a part of this picture's posterior, and that its $\log p(x)$ is likely higher than estimated.
#
# ## Eight numbers
#
# From now on eight latents.

# %%
fit = bz.fit(autoencoder(num_latents), train, guide="amortized", steps=steps, **common)
held_out = fit.log_marginal(test, k=500)
print(f"2 latents: {plane.log_marginal(test, k=500)}")
print(f"{num_latents} latents: {held_out}")


def encode(data):
    """Posterior means (N, latents)."""
    return fit.sample(100, data=data)["z"].mean(0)


def decode(z):
    """Expected pictures of codes."""
    with torch.no_grad():
        return fit.model.decode(z.to(fit.device)).cpu()


codes = {part: encode(data) for part, data in (("train", train), ("test", test))}

# %% [markdown]
# **Before you look:** samples come from codes that no picture had. Would you mistake them for digits? And what will be
# missing in a reconstruction, a detail of this picture or a part of the digit?

# %%
torch.manual_seed(1)
z = torch.randn(60, num_latents)
drawn = fit.predict(num_data=60, n=1).draws[0]
_, axes = plt.subplots(2, 2, figsize=(10.5, 6.8), layout="constrained")
show(axes[0, 0], x_train[:60], 10, "data")
show(axes[0, 1], decode(z), 10, "drawn codes, expected pictures")
show(axes[1, 0], drawn, 10, "drawn codes, drawn pixels")
pairs = torch.cat([torch.cat([x_test[i : i + 10], decode(codes["test"][i : i + 10])]) for i in (0, 10, 20)])
show(axes[1, 1], pairs, 10, "held out: original above, decoded below")
error = (decode(codes["test"]) - x_test).square().mean()
print(
    f"mean squared error of a pixel: reconstruction {error:.4f}, mean picture {(x_train.mean(0) - x_test).square().mean():.4f}"
)

# %% [markdown]
# Most samples are digits, some lie between two. The third panel is what the model really says: pixels are independent
# given the code, so a drawn picture has a grain that the data do not have. Papers show the second panel.
#
# **Before you look:** below, lines between the codes of two digits, and one latent at a time moved through $\pm 2.5$
# around a code. Will halfway be a blend of both pictures? Do all latents do something?

# %%
halves = fit.sample(100, data=train)["z"].unflatten(0, (2, 50)).mean(1)  # two means of 50 draws each, (2, N, latents)
# the variance of one mean would count its noise, which is what a switched-off unit has; the covariance of two does not
activity = (halves - halves.mean(1, keepdim=True)).prod(0).mean(0)
order = activity.argsort(descending=True)
start, end = (
    torch.stack([codes["test"][int((y_test == d).nonzero()[0])] for d in ds]) for ds in ((0, 1, 3, 4, 7), (6, 7, 5, 9, 2))
)
share = torch.linspace(0, 1, 11)[:, None]
between = torch.cat([(1 - share) * a + share * b for a, b in zip(start, end, strict=True)])
base = codes["test"][int((y_test == 3).nonzero()[0])]
moved = base.repeat(num_latents, 11, 1)
for row, i in enumerate(order):
    moved[row, :, i] = torch.linspace(-2.5, 2.5, 11)
_, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
show(left, decode(between), 11, "from one digit to another")
show(right, decode(moved.flatten(0, 1)), 11, "one latent a row, most active first, -2.5 to 2.5")

print("variance of the posterior mean:", activity[order].numpy().round(3))
print(f"active units: {int((activity > 0.01).sum())} of {num_latents}")

# %% [markdown]
# Halfway is another digit, or a shape that might be one, not two pictures on top of each other. Seven units are *active*:
# the mean of $q$ moves with the picture (Burda et al. 2016 draw the line at a variance of 0.01). The eighth, in the last row,
# does nothing: the KL has switched it off, $q(z_i \mid x) = p(z_i)$ whatever the picture.
#
# ## Codes as features
#
# A linear classifier on codes, beside the same one on pixels. Then with ten labels a class: codes were learned from
# all pictures, labels from a hundred. This is the poor man's M1 of Kingma et al. (2014): labels play no part in learning
# the codes. (M2, where they do, is another model.)
#
# **Before you look:** eight numbers against 64 pixels. Who wins with all labels? With a hundred?


# %%
def probe(features, rows):
    """Accuracy on held-out digits of a logistic regression that has seen these rows' labels."""
    learner = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2_000))
    learner.fit(features["train"][rows].flatten(1).numpy(), y_train[rows].numpy())
    return learner.score(features["test"].flatten(1).numpy(), y_test.numpy())


features = {"codes": codes, "pixels": {"train": x_train, "test": x_test}}
everything = torch.arange(len(train))
generator = torch.Generator().manual_seed(0)
choices = {n: [] for n in (1, 3, 10, 30)}
for n, found_rows in choices.items():
    for _ in range(10):
        order = torch.randperm(len(train), generator=generator)
        found_rows.append(torch.cat([order[y_train[order] == digit][:n] for digit in range(10)]))
accuracy = {
    name: {n: np.array([probe(values, rows) for rows in found_rows]) for n, found_rows in choices.items()}
    for name, values in features.items()
}
for name, values in features.items():
    shown_few = ", ".join(f"{n}: {a.mean():.3f} ± {a.std(ddof=1) / len(a) ** 0.5:.3f}" for n, a in accuracy[name].items())
    print(f"{name:7} all labels {probe(values, everything):.3f};  labels a class {shown_few}")

# %% [markdown]
# The pixels win, with all labels and with few. On small, centred digits classes are all but linear in the pixels, the code
# keeps what matters for the *picture*, of which the class is only a part, and the VAE has seen no more than 1,438 pictures.
# Codes are no better features because a VAE made them. Kingma et al. found a gain on MNIST with 50 latents, 50,000 pictures
# without labels and a classifier that is not linear. What ten labels a class can do is better asked of a model that takes
# the label into account.
#
# ## log p(x): Monte Carlo doesn't help much
#
# Three estimates of $\log p(x)$, each with $k$ draws a picture:
#
# $$\text{naive: } \log \tfrac{1}{k} \sum p(x \mid z_j), \; z_j \sim p(z) \qquad
# \text{importance: } \log \tfrac{1}{k} \sum \tfrac{p(x, z_j)}{q(z_j \mid x)}, \; z_j \sim q(z \mid x)$$
#
# and the ELBO, which is the average of the logarithms. The logarithm of an average is too low in expectation, by about
# half the relative variance of the average.
#
# **Before you look:** the posterior of eight latents is perhaps a fifth as wide as the prior in each direction.
# What share of the prior's draws lands in it? How large must $k$ be?

# %%
part = test.select(range(40))
ks = (1, 10, 100, 1_000, 10_000)
reference = fit.inference_gap(part, k=2_000).log_marginal  # the best proposal there is: q made for each picture
curves, claimed, seconds = {}, {}, {}
for proposal in ("guide", "prior"):
    began = time.perf_counter()
    runs = [[fit.log_marginal(part, k=k, proposal=proposal, seed=s, k_hat=False) for k in ks] for s in range(3)]
    seconds[proposal] = time.perf_counter() - began
    curves[proposal] = np.array([[run.mean for run in row] for row in runs])
    claimed[proposal] = np.array([run.error for run in runs[0]])

_, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for proposal, colour, name in (("guide", BLUE, "importance sampling from q"), ("prior", RED, "naive, from the prior")):
    mean, spread = curves[proposal].mean(0), curves[proposal].std(0, ddof=1)
    for ax in axes:
        ax.errorbar(ks, mean, 2 * spread, color=colour, marker="o", ms=4, capsize=3, label=name)
    told = "  ".join(f"k={k}: {m:.1f} ± {s:.2g}" for k, m, s in zip(ks, mean, spread, strict=True))
    print(f"{proposal:5} {seconds[proposal]:.1f} s   {told}")
for ax in axes:
    ax.axhline(reference.mean, color=GREEN, ls="--", label="q made for each picture, k = 2,000")
    ax.axhline(float(reference.elbo.mean()), color=GREY, ls=":", label="its ELBO")
    ax.set(xscale="log", xlabel="draws k")
axes[0].set(ylabel="log p(x), nats a picture", title="the whole curve")
axes[1].set(ylim=(reference.mean - 12, reference.mean + 1), title="the upper end")
axes[0].legend(frameon=False, fontsize=8)
naive, weighted = curves["prior"].mean(0), curves["guide"].mean(0)
print(f"naive at k = 10,000 is {reference.mean - naive[-1]:.1f} nats low and claims an error of {claimed['prior'][-1]:.2f}")
assert full or weighted[0] > naive[-1]

# %% [markdown]
# A single draw from $q$, which is the ELBO, does better than ten thousand from the prior. And the naive estimate is not
# noisy but *wrong*: it misses the posterior of most pictures, and its own error, computed from the draws it has, knows
# nothing of the ones it would have needed. Every further active latent multiplies the number that it would take.
#
# Importance sampling is not free of this. For many pictures k-hat is above 0.7, and the curve still rises after a thousand
# draws. A proposal made for each picture, which the next section needs anyway, is the better one.
#
# In bits for each pixel, with what others would need for the same held-out pictures:

# %%
counts = F.one_hot((x_train * (levels - 1)).round().long(), levels).sum(0) + 0.5
frequencies = (counts / counts.sum(-1, keepdim=True)).log()


def alone(x):
    """log p(x) where every pixel is drawn on its own, from its frequencies in the training data."""
    level = (x * (levels - 1)).round().long()
    return frequencies.expand(len(x), *frequencies.shape).gather(-1, level[..., None]).flatten(1).sum(1).double()


def zipped(x):
    """Length in nats of each picture as zlib packs it."""
    raw = (x * (levels - 1)).round().to(torch.uint8).flatten(1).numpy()
    return torch.tensor([8 * np.log(2) * len(zlib.compress(row.tobytes(), 9)) for row in raw])


bits = x_test[0].numel() * np.log(2)
sharper = fit.inference_gap(test.select(range(min(400, len(test)))), steps=200, k=1_000)  # draws are held all at once
best = sharper.log_marginal
print(f"no model at all       {np.log2(levels):.3f} bits a pixel")
print(f"zlib                  {float(zipped(x_test).mean()) / bits:.3f}")
print(f"every pixel alone     {-float(alone(x_test).mean()) / bits:.3f}")
print(f"VAE, ELBO             {-float(held_out.elbo.mean()) / bits:.3f}")
print(
    f"VAE, log p(x)         {held_out.bits_per_dim:.3f}, draws from q, k-hat above 0.7 for {int((held_out.k_hat > 0.7).sum())} of {len(test)}"
)
print(
    f"                      {best.bits_per_dim:.3f}, draws from q made for each, k-hat above 0.7 for {int((best.k_hat > 0.7).sum())}"
)
print(f"standard error of the last one: {best.spread / bits:.3f} for other pictures, {best.error / bits:.4f} for other draws")

# %% [markdown]
# ## What q costs
#
# $$\log p(x) - \text{ELBO} \;=\; \underbrace{\log p(x) - \text{ELBO}(q^\star)}_{\text{the family}} \;+\;
# \underbrace{\text{ELBO}(q^\star) - \text{ELBO}(q_\Lambda)}_{\text{one network for all}}$$
#
# with $q^\star$ the best member of the family for this one picture. Three families, and the first again with the
# importance-weighted objective $\mathbb{E} \log \frac{1}{k} \sum w_j$, $k = 10$ (Burda et al. 2016), which is tighter. All have
# half the steps of above.
#
# **Before you look:** which part is larger? Will the flow's be smaller than that of the normals? And what does
# importance weighting do to the ELBO?

# %%
families = {
    "amortized": {"guide": "amortized"},
    "amortized_full_rank": {"guide": "amortized_full_rank"},
    "amortized_iaf": {"guide": "amortized_iaf"},
    "amortized, weighted": {"guide": "amortized", "loss": "importance_weighted", "num_particles": 10},
}
seen, unseen = train.select(range(200)), test.select(range(200))
rows = []
for name, options in families.items():
    began = time.perf_counter()
    one = bz.fit(autoencoder(num_latents), train, steps=few_steps, **options, **common)
    took = time.perf_counter() - began
    gap, gap_seen = (one.inference_gap(data, steps=200, k=500) for data in (unseen, seen))
    rows.append((name, gap, gap_seen))
    parts = [f"{float(part.mean()):6.2f}" for g in (gap, gap_seen) for part in (g.approximation, g.amortization)]
    print(
        f"{name:20} log p(x) {gap.log_marginal.mean:7.2f}  ELBO {float(gap.elbo.mean()):7.2f}  family, network",
        *parts[:2],
        end="",
    )
    print("  on training data", *parts[2:], f"  {took:5.1f} s")
_, ax = plt.subplots(figsize=(8, 2.8), layout="constrained")
for j, (_, gap, gap_seen) in enumerate(rows):
    for at, which, alpha in ((j - 0.18, gap, 1.0), (j + 0.18, gap_seen, 0.5)):
        family, network = float(which.approximation.mean()), float(which.amortization.mean())
        ax.barh(at, family, 0.32, color=BLUE, alpha=alpha, label="the family" if (j, alpha) == (0, 1.0) else None)
        ax.barh(
            at, network, 0.32, left=family, color=ORANGE, alpha=alpha, label="the network" if (j, alpha) == (0, 1.0) else None
        )
ax.set(yticks=range(len(rows)), yticklabels=[row[0] for row in rows], xlabel="nats a picture (pale: training data)")
ax.invert_yaxis()
_ = ax.legend(frameon=False, fontsize=8)

# %% [markdown]
# On held-out pictures the network costs more than four times as much as the family, on those that it has learned from less:
# inference overfits, too. A full matrix takes most of the family's part away, the flow hardly changes it. Nor is a smaller
# gap a better model: full rank has the smallest gap here and the lowest $\log p(x)$, its network having more numbers to learn
# in a thousand steps. One seed each: a few tenths are no ranking.
#
# Importance weighting has the best model, by 1.6 nats or more, and the worst ELBO. It does not ask $q$ to be near the
# posterior, only to put draws where they are needed, so both gaps grow: they measure a bound that it was not trained for. Each
# step is several times the work: ten draws in place of one.
#
# ## What does not belong
#
# A model that knows $p(x)$ should notice what does not look like a digit: $\log p(x)$ will be low. That is the
# folklore. We try it on things that are not in the data, and give the AUROC: the probability that a held-out digit
# scores above a stranger. 1 is perfect, 0.5 is guessing, and **below 0.5 the strangers look more like digits than digits do**.
# Three corrections have been proposed:
#
# | score | idea |
# |---|---|
# | $\log p(x) - \log p_0(x)$ | against a model of single pixels (the ratio of Ren et al. 2019) |
# | $\log p(x) + L(x)$ | $L$ the length of $x$ as zlib packs it: simple pictures are cheap for any model (Serrà et al. 2020) |
# | $-\lvert \log p(x) - \overline{\log p} \rvert$ | typicality: too probable is suspicious, too (Nalisnick et al. 2019) |
#
# **Before you look:** noise, inverted digits, digits turned by 90 degrees, digits with pixels shuffled, digits
# upside down, digits with half the ink, an upright bar, an empty picture. Which of them will the plain score miss?

# %%
torch.manual_seed(0)
as_images = x_test.reshape(-1, side, side)
bar = torch.zeros(side, side)
bar[:, side // 2 - side // 8 : side // 2 + side // 8] = 1
strangers = {
    "noise": torch.randint(levels, as_images.shape) / (levels - 1),
    "inverted": 1 - as_images,
    "turned": as_images.rot90(1, (1, 2)),
    "shuffled pixels": as_images.flatten(1)[:, torch.randperm(side**2)],
    "upside down": as_images.flip(1),
    "half the ink": (as_images / 2 * (levels - 1)).round() / (levels - 1),
    "bar": bar[None],
    "blank": torch.zeros(1, side, side),
}
strangers = {name: x.reshape(-1, *shape) for name, x in strangers.items()}


def scores_of(fitted, x, typical):
    """Four scores (N,) of pictures, each higher for what belongs."""
    log_p = fitted.log_marginal(x, k=300, k_hat=False).values
    return {
        "log p(x)": log_p,
        "minus single pixels": log_p - alone(x),
        "plus zlib": log_p + zipped(x),
        "typicality": -(log_p - typical).abs(),
    }


def auroc(inside, outside):
    truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    return float(roc_auc_score(truth, np.r_[inside, outside]))


typical = fit.log_marginal(x_train, k=300, k_hat=False).mean
digits = scores_of(fit, x_test, typical)
table = {name: scores_of(fit, x, typical) for name, x in strangers.items()}
areas = {name: {score: auroc(digits[score], scores[score]) for score in digits} for name, scores in table.items()}
print(f"{'AUROC':16}" + "".join(f"{score:>21}" for score in digits))
for name, row in areas.items():
    print(
        f"{name:16}"
        + "".join(f"{area:21.3f}" for area in row.values())
        + f"   log p {float(table[name]['log p(x)'].mean()):7.1f}"
    )
print(f"{'digits':16}{'':84}   log p {float(digits['log p(x)'].mean()):7.1f}")

_, axes = plt.subplots(1, 2, figsize=(12, 3.6), layout="constrained", width_ratios=[1, 2.2])
show(axes[0], torch.cat([x[:1] for x in strangers.values()] + [x_test[:1]]), 3, "the strangers, and a digit")
bins = np.linspace(float(digits["log p(x)"].min()), 0, 53) if full else np.linspace(-160, -30, 53)
axes[1].hist(digits["log p(x)"], bins, color=GREY, alpha=0.6, density=True, label="held-out digits")
for name, colour in (("upside down", BLUE), ("half the ink", GREEN)):
    axes[1].hist(table[name]["log p(x)"], bins, color=colour, histtype="step", lw=1.5, density=True, label=name)
for name, colour in (("blank", ORANGE), ("bar", RED)):
    axes[1].axvline(float(table[name]["log p(x)"][0]), color=colour, lw=2, label=name)
axes[1].set(xlabel="log p(x), nats (the others lie far to the left)", yticks=[])
_ = axes[1].legend(frameon=False, fontsize=8)
assert full or (areas["bar"]["log p(x)"] < 0.05 and areas["blank"]["log p(x)"] < 0.5)

# %% [markdown]
# Noise, inverted, turned and shuffled digits are found by every score. Digits upside down remain hard for all: many of them are
# digits. The plain score fails where a picture is *simpler* than a digit. The bar is more probable than **every** held-out
# digit, and an empty picture more probable than most of them (both AUROCs are of one picture: the share of digits above it).
# That is no defect of this model. The middle of a digit is dark and its margin white; whoever predicts every pixel well gives
# much probability to the picture that has just that, though no such picture was ever drawn.
#
# Typicality finds the bar, which is *too* probable, and not the empty picture, whose $\log p(x)$ is that of a good digit. zlib
# finds both, because it knows what simple means (it is a poor packer otherwise, with more bits a pixel than no model at
# all; only its differences count). The ratio to single pixels finds the empty one. No single number works everywhere.
#
# ### The reverse direction
#
# A stranger to one model is at home in another. We learn from 0 to 4 and ask about 5 to 9, and the other way round.
#
# **Before you look:** should the two AUROCs be the same?

# %%
print(f"{'learned from':14}{'log p inside':>14}{'outside':>10}" + "".join(f"{score:>21}" for score in digits))
for name, chosen, inside in (("0 to 4", y_train < 5, y_test < 5), ("5 to 9", y_train >= 5, y_test >= 5)):
    half = train.select(chosen.nonzero().flatten())
    one = bz.fit(autoencoder(num_latents), half, guide="amortized", steps=few_steps, **common)
    scores = scores_of(one, x_test, one.log_marginal(k=300, k_hat=False).mean)
    log_p = scores["log p(x)"]
    line_of = "".join(f"{auroc(values[inside], values[~inside]):21.3f}" for values in scores.values())
    print(f"{name:14}{float(log_p[inside].mean()):14.1f}{float(log_p[~inside].mean()):10.1f}{line_of}")
    areas = {int(d): auroc(log_p[inside], log_p[y_test == d]) for d in y_test[~inside].unique()}
    print(f"{'':14}AUROC of log p(x) against each class outside:", ", ".join(f"{d}: {area:.2f}" for d, area in areas.items()))

# %% [markdown]
# No. Strangers to the first model are noticed, class by class. The second one takes a 1 for its own nearly as often as not: to it
# a 1 is what the bar was to the model of all digits, a simple picture in the right place. The two corrections for
# complexity raise the AUROC of that direction from 0.87 to 0.96. So a number for one direction says nothing about the other.
#
# ## Few labels
#
# Labels are dear, pictures are not. We keep three labels of each digit and hide all others. The model M2 (Kingma et al. 2014) writes
# the class into the story, $c \sim \text{Cat}(1/10)$, $z \sim \mathcal{N}(0, I)$, $x \sim p(x \mid f_\theta(z, c))$: whatever is not the
# class is left to the style $z$. Where the label is hidden, $c$ is a latent like any other, and the ELBO sums over it,
#
# $$\log p(x) \;\geq\; \sum_c q(c \mid x) \left[ \mathbb{E}_{q(z \mid x, c)} \log \frac{p(x \mid z, c) \, p(z) \, p(c)}{q(z \mid x, c)}
# - \log q(c \mid x) \right]$$
#
# so $q(c \mid x)$ is a classifier that learns from pictures without a label, too. Every batch has all 30 labelled pictures and 98 others,
# each counted for what it stands for. Beside it the same network, taught by the 30 labels alone.
#
# **Before you look:** how many of a hundred held-out digits will each get right? And what stays the same along a row when one
# style is decoded with all ten classes?

# %%
labels_each = 10 if full else 3
rows = torch.cat([(y_train == digit).nonzero()[:labels_each, 0] for digit in range(10)])
partly = labelled[0].partly_labelled(rows)
torch.manual_seed(0)
m2 = bz.models.SemiSupervisedVAE(shape, 10, latents=6, likelihood="logistic", levels=levels, hidden=hidden)
streams = partly.in_streams(partly.observed["y"] >= 0, (len(rows), 128 - len(rows)))
semi = bz.fit(m2, streams, guide="semi_supervised", steps=few_steps, **common)
torch.manual_seed(0)
net = bz.models.networks.mlp(x_test[0].numel(), list(hidden), 10, activation="tanh")
alone_on = labelled[0].select(rows)
taught = bz.fit(bz.models.BayesianNN(net), alone_on, guide="mle", steps=500, optimizer=3e-3, compile=False, progress=False)

believed = semi.latent_probs(x_test)
z_one = semi.sample(1, data=labelled[1].unsupervised().select(range(8)))["z"][0]
with torch.no_grad():
    styles = semi.model.decode(z_one.repeat_interleave(10, 0), torch.arange(10).repeat(8)).cpu()
right_semi = (believed.argmax(1) == y_test).double().mean()
right_alone = taught.predict(labelled[1].inputs["x"], n=1).scores(y_test).accuracy
print(f"{len(rows)} labels, {len(y_test)} held-out digits: labels alone {right_alone:.1%} right, M2 {right_semi:.1%}")
_, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained", width_ratios=[1, 3.3])
show(axes[0], x_train[rows], labels_each, "all that was labelled")
show(
    axes[1],
    torch.cat([x_test[:8, None], styles.reshape(8, 10, *shape)], 1).flatten(0, 1),
    11,
    "a held-out digit, and its style as 0 to 9",
)
assert full or right_semi > right_alone + 0.02

# %% [markdown]
# 75 % with labels alone, 86 % with the same labels and 1,408 pictures more. The pictures without labels say which shapes lie
# close together, and a class that is right about some of them explains its neighbours, too. Along a row the class changes, while
# slant and thickness stay: nobody told the model what style is, it is what the class does not say.
#
# Two things are not given. The bound alone never shows a known label to the classifier, so its log probability of known labels is
# maximised beside the ELBO, with a weight (`guide_options={"alpha": ...}`). And a class that explains the wrong neighbours is just
# as happy: with too little weight on the labels, classes drift to whatever groups the pictures best.
#
# ## Exercise
#
# 1. Fit with `likelihood="gaussian"` and `"categorical"`, and compare $\log p(x)$ with that of the logistic. Which of the three cannot
#    be compared, and why?
# 2. Take 32 latents. How many are active? Does `kl_weight=lambda step, steps: min(1, 2 * step / steps)`, which switches the
#    KL on slowly, change that number, or the held-out $\log p(x)$?
# 3. Fit a linear generator, `bz.models.VAE(64, 2, "gaussian", generator=torch.nn.Linear(2, 64))`: probabilistic PCA. Its posterior
#    is normal, its $\log p(x)$ known. Which guide closes the gap? Compare the plane of codes with that of PCA.
# 4. Make a picture with a higher $\log p(x)$ than any digit, by gradient ascent on a code or by hand. What does it look like?
