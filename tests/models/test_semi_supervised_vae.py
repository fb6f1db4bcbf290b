"""The semi-supervised autoencoder: known labels hold, unknown classes are summed over, streams are unbiased, few labels help."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bayeszoo as bz

K = 3


def pictures(labelled: int = 6, rows: int = 60) -> bz.data.Data:
    """Six pixels that depend on the class, most labels hidden."""
    generator = torch.Generator().manual_seed(0)
    c = torch.arange(rows) % K
    chance = torch.tensor([[0.9, 0.9, 0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.9, 0.9, 0.5, 0.5], [0.5, 0.5, 0.1, 0.1, 0.9, 0.9]])[c]
    x = (torch.rand(rows, 6, generator=generator) < chance).float()
    return bz.data.Data({"x": x}, c).partly_labelled(range(labelled))


def fitted(data: bz.data.Data, **options: Any) -> bz.inference.Fit:
    torch.manual_seed(1)
    model = bz.models.SemiSupervisedVAE(6, K, latents=2, hidden=(8,))
    return bz.fit(model, data, "semi_supervised", **{"steps": 100, "compile": False, "progress": False, **options})


def test_known_labels_hold() -> None:
    data = pictures()
    fit = fitted(data)
    draws = fit.sample(20)
    assert draws["z"].shape == (20, 60, 2)
    assert bool((draws["c"][:, :6] == data.observed["y"][:6]).all())
    assert bool((draws["c"][:, 6:].float().std(0) > 0).any())


def test_the_sum_over_classes_is_their_expectation() -> None:
    """`fit.loss` draws the class, a step's loss sums over it: the same mean."""
    fit = fitted(pictures())
    with fit.run.owned.active(3), torch.no_grad():
        kwargs = fit.data.bind(fit.model)
        values = torch.stack([fit.run.objective(kwargs)[1] for _ in range(400)]).double()
    error = (float(values.var()) / 400 + fit.loss_error**2) ** 0.5
    assert abs(float(values.mean()) - fit.loss) < 4 * error
    assert float(values.std()) > 0


def test_a_sure_label_is_the_bound_of_picture_and_label() -> None:
    """All labels known: the ELBO of log p(x, y), with log p(y) = -log K, computed by hand from the same draws."""
    data = pictures(labelled=60)
    fit = fitted(data)
    y = data.observed["y"]
    draws = fit.sample(400)
    guide, model, x = fit.guide, fit.model, data.observed["x"]
    with torch.no_grad():
        seen = (x - guide.center) / guide.scale
        both = torch.cat([guide.body(seen), torch.nn.functional.one_hot(y, K).float()], -1)
        loc, raw = guide.style(both).chunk(2, -1)
        q = torch.distributions.Normal(loc, torch.nn.functional.softplus(raw + 0.5413248) + 1e-6)
        z = draws["z"]
        score = torch.stack([model.pixels.distribution(model._out(one, y), 1).log_prob(x).sum() for one in z])
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2))
        bound = score + prior - q.log_prob(z).sum((1, 2)) - 60 * torch.log(torch.tensor(float(K)))
    error = (float(bound.var()) / 400 + fit.loss_error**2) ** 0.5
    assert abs(-float(bound.mean()) - fit.loss) < 4 * error


def test_streams_hold_their_rows_and_are_unbiased() -> None:
    data = pictures(labelled=10, rows=100)
    streams = data.in_streams(data.observed["y"] >= 0, (5, 20))
    seen = list(streams.batches(25, seed=0, epoch=0))
    assert len(seen) == 4  # 90 rows in twenties
    for batch in seen:
        assert bool((data.observed["y"][batch[:5]] >= 0).all())
        assert bool((data.observed["y"][batch[5:]] < 0).all())
    weights = streams.row_weights()
    assert weights is not None
    assert float(weights.mean()) == pytest.approx(1.0)
    assert (weights * 100 / 25)[[0, -1]].tolist() == pytest.approx([10 / 5, 90 / 20])
    still = {"optimizer": 1e-9, "guide_options": {"alpha": 1.0}}
    batches = fitted(streams, batch_size=25, steps=1200, **still).losses
    whole = fitted(data, steps=60, **still).losses
    a, b = torch.tensor(batches), torch.tensor(whole)
    error = (float(a.var()) / len(a) + float(b.var()) / len(b)) ** 0.5
    assert abs(float(a.mean() - b.mean())) < 4 * error
    # Without weights a batch's five labelled rows would count as twenty.
    assert error < 0.01 * float(b.mean())


def test_alpha_trains_and_is_not_reported() -> None:
    first = [fitted(pictures(), steps=1, guide_options={"alpha": alpha}).losses[0] for alpha in (0.0, 1000.0)]
    assert first[0] == first[1]
    wide = pictures(labelled=30)
    learned = {a: fitted(wide, steps=200, optimizer=0.01, guide_options={"alpha": a}) for a in (0.0, 10.0)}
    score = {}
    for alpha, fit in learned.items():
        with torch.no_grad():
            probs = fit.guide.probs(x=wide.observed["x"][:30])
        score[alpha] = float(probs.gather(1, wide.observed["y"][:30, None]).log().mean())
    # Classes get their meaning through the generator alone, too; the classifier is surer of known ones where it is asked.
    assert score[10.0] > score[0.0] + 0.05


@pytest.mark.parametrize("particles", [1, 3])
def test_known_labels_are_maximised_beside_the_bound(particles: int) -> None:
    """Nothing else lies between the tensor to differentiate and the loss; a classifier of one's own runs once for both."""
    calls: list[int] = []
    network = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh())
    data = pictures()
    fit = fitted(data, steps=20, num_particles=particles, guide_options={"network": network, "alpha": 7.0})
    x, y = data.observed["x"][:6], data.observed["y"][:6]
    with fit.run.owned.active(3), torch.no_grad():
        expected = 7.0 * fit.guide.probs(x=x).gather(1, y[:, None]).log().sum()
        fit.guide.class_body.register_forward_hook(lambda *_: calls.append(1))
        surrogate, value = fit.run.objective(fit.data.bind(fit.model))
    assert len(calls) == 1
    # float32 losses of some hundreds of nats, whose difference this is
    assert float(value - surrogate) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.slow
def test_compiled_is_eager() -> None:
    data = pictures(labelled=10, rows=100)
    streams = data.in_streams(data.observed["y"] >= 0, (5, 20))
    a, b = (fitted(streams, batch_size=25, steps=40, dtype=torch.float64, compile=compiled) for compiled in (False, True))
    assert b.engine == "compiled"
    torch.testing.assert_close(torch.tensor(a.losses), torch.tensor(b.losses), rtol=1e-8, atol=0.0)


def test_three_labels_a_class_beat_a_classifier_of_pixels() -> None:
    from sklearn.linear_model import LogisticRegression

    train, test = bz.data.load("digits").split(2 / 3, seed=0)
    generator = torch.Generator().manual_seed(0)
    places = [(train.observed == k).nonzero()[:, 0] for k in range(10)]
    rows = torch.cat([place[torch.randperm(len(place), generator=generator)[:3]] for place in places])
    data = train.partly_labelled(rows)
    torch.manual_seed(0)
    model = bz.models.SemiSupervisedVAE(64, 10, latents=6, likelihood="logistic", levels=17, hidden=(128, 64))
    fit = bz.fit(
        model, data.in_streams(data.observed["y"] >= 0, (30, 98)), "semi_supervised", steps=800, batch_size=128, optimizer=0.003,
        schedule="cosine", compile=False, progress=False,
    )  # fmt: skip
    right = float((fit.guide.probs(x=test.inputs["x"]).argmax(1) == test.observed).double().mean())
    pixels = LogisticRegression(max_iter=3000).fit(train.inputs["x"][rows], train.observed[rows])
    assert right > pixels.score(test.inputs["x"], test.observed) + 0.02


def test_without_labels_the_class_is_integrated_out() -> None:
    """log p(x) of pictures alone is log sum_k p(x, y = k), each estimated with the class told."""
    fit = fitted(pictures(), steps=300)
    x = pictures(rows=90).observed["x"][60:]
    found = fit.log_marginal(x, k=4000)
    told = [fit.log_marginal(bz.data.Data({}, {"x": x, "y": torch.full((len(x),), k)}), k=4000) for k in range(K)]
    joint = torch.stack([each.values for each in told])
    weights = torch.softmax(joint, 0)
    errors = ((weights * torch.stack([each.errors for each in told])).square().sum(0) + found.errors.square()).sqrt()
    # Thirty differences in units of their errors: the largest stays below 4 with probability 0.998.
    assert float(((found.values - joint.logsumexp(0)) / errors).abs().max()) < 4
    unknown = fit.log_marginal(bz.data.Data({}, {"x": x, "y": torch.full((len(x),), -1)}), k=4000)
    assert torch.equal(unknown.values, found.values)
    assert (found.dims, unknown.dims, told[0].dims) == (6, 6, 7)
    assert str(found).startswith("log p(x) = ")
    assert str(told[0]).startswith("log p(x, y) = ")
    assert fit.log_marginal(pictures(labelled=0), k=30).values.isfinite().all()


def test_q_of_the_class_of_new_pictures() -> None:
    fit = fitted(pictures())
    x = pictures(rows=90).observed["x"]
    probs = fit.latent_probs(x)
    torch.testing.assert_close(probs.sum(1), torch.ones(90))
    with torch.no_grad():
        assert torch.equal(probs, fit.guide.probs(x=x))
    assert torch.equal(probs[60:], fit.latent_probs(bz.data.Data({}, x[60:])))
    with pytest.raises(ValueError, match="'z' is no discrete latent of the model; choose site='c'"):
        fit.latent_probs(x, site="z")
    with pytest.raises(ValueError, match=r"make it with shape=\(5,\)"):
        fit.latent_probs(x[:, :5])
    with pytest.raises(ValueError, match=r"take \(x \+ 1\) / 2"):
        fit.latent_probs(2 * x - 1)
    assert torch.equal(probs, fit.latent_probs(x.numpy()))
    with pytest.raises(ValueError, match="there are no observations"):
        fit.latent_probs(x[:0])
    with pytest.raises(ValueError, match=r"data must be bz.data.Data.* got NoneType"):
        fit.latent_probs(None)
    # Grey pixels have no probability here, but a class: the chances that a picture is drawn from, say.
    grey = 0.9 * x + 0.05
    with torch.no_grad():
        assert torch.equal(fit.latent_probs(grey), fit.guide.probs(x=grey))
    with pytest.raises(ValueError, match="these are grey"):
        fit.log_marginal(grey)


def test_dropout_in_a_classifier_of_ones_own_is_for_training_alone() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.5))
    fit = fitted(pictures(), steps=20, guide_options={"network": network})
    x = pictures().observed["x"]
    with torch.no_grad():
        assert torch.equal(fit.guide.probs(x=x), fit.guide.probs(x=x))
    assert network.training
    assert fit.losses[0] != fitted(pictures(), steps=20, guide_options={"network": network[:1]}).losses[0]


def test_validation_teaches_batch_norm_nothing() -> None:
    data, held_out = pictures(), pictures(rows=120)
    far = bz.data.Data({}, {"x": 1 - held_out.observed["x"], "y": held_out.observed["y"]})
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8))
    options: dict[str, Any] = {"steps": 60, "guide_options": {"network": network}}
    alone, watched = fitted(data, **options), fitted(data, validation=far, **options)
    assert watched.validation_losses
    assert torch.equal(alone.guide.class_body[1].running_mean, watched.guide.class_body[1].running_mean)
    assert not watched.guide.class_body[1].training


def test_known_labels_weigh_the_same_in_every_split_into_batches() -> None:
    """What batches without streams add to the bound for known labels, averaged over batches, is what all pictures add."""
    data = pictures(labelled=6)
    fit = fitted(data, steps=5, guide_options={"alpha": 2.0})
    x, y = data.observed["x"], data.observed["y"]

    def added(rows: Any) -> float:
        with torch.no_grad():
            logits = fit.guide.classifier(fit.guide.class_body((x[rows] - fit.guide.center) / fit.guide.scale))
            return float(fit.guide._classification(logits, y[rows], 60))

    batches = torch.randperm(60, generator=torch.Generator().manual_seed(0)).split(10)
    assert sum(added(rows) for rows in batches) / 6 == pytest.approx(added(slice(None)), rel=1e-5)


def test_it_is_a_member_of_the_zoo() -> None:
    from bayeszoo.catalog import default_data, entry

    data = default_data("semi_supervised_vae")
    assert int((data.observed["y"] >= 0).sum()) == 100
    fit = bz.fit(entry("semi_supervised_vae").model(data), data, steps=3, compile=False, progress=False)
    assert fit.settings.guide == "semi_supervised"
    families = bz.guides.available(fit.model, data.select(range(200)))
    assert "semi_supervised" in families
    assert "amortized" not in families


def test_save_and_load(tmp_path: Any) -> None:
    data = pictures()
    fit = fitted(data.in_streams(data.observed["y"] >= 0, (3, 7)), batch_size=10, steps=5)
    fit.save(tmp_path / "run")
    again = bz.load(tmp_path / "run")
    assert torch.equal(again.sample(3)["z"], fit.sample(3)["z"])
    assert again.data.stream_sizes == (3, 7)
    assert torch.equal(again.data.streams, fit.data.streams)


def test_json_tells_how_probable_each_class_is() -> None:
    from bayeszoo.outputs import record

    found = record(fitted(pictures()), n=50)["posterior"]["c"]
    probs = torch.tensor(found["probs"])
    assert found["states"] == [0, 1, 2]
    assert probs.shape == (60, 3)
    torch.testing.assert_close(probs.sum(1), torch.ones(60))
    assert probs[:6].argmax(1).tolist() == [0, 1, 2, 0, 1, 2]  # the labels that are known


def test_what_is_refused() -> None:
    data = pictures()
    x, y = data.observed["x"], data.observed["y"]
    cases = {
        "no picture has a label": lambda: fitted(bz.data.Data({}, {"x": x, "y": torch.full_like(y, -1)})),
        "class 2 has no labelled picture": lambda: fitted(pictures(labelled=2)),
        "labels must be whole numbers from 0 to 2": lambda: fitted(bz.data.Data({}, {"x": x, "y": y + 5})),
        "explains pictures and labels": lambda: fitted(bz.data.Data({}, x)),
        r"make it with shape=\(5,\)": lambda: fitted(bz.data.Data({}, {"x": x[:, :5], "y": y})),
        "0 or 1, and these are grey": lambda: fitted(bz.data.Data({}, {"x": 0.5 * x, "y": y})),
        "classes must be": lambda: bz.models.SemiSupervisedVAE(6, 1),
        "alpha weighs": lambda: fitted(data, guide_options={"alpha": -1.0}),
        "is for SemiSupervisedVAE": lambda: bz.fit(bz.models.VAE(6, 2), bz.data.Data({}, x), "semi_supervised", progress=False),
        "batch_size must be 10": lambda: fitted(data.in_streams(y >= 0, (3, 7)), batch_size=12),
        "between 1 and 6": lambda: data.in_streams(y >= 0, (7, 7)),
        "True or False for each": lambda: data.in_streams(y, (3, 7)),
        "True or False for each of the 60 rows, got 'all'": lambda: data.in_streams("all", (3, 7)),  # type: ignore[arg-type]
        r"such as \(50, 150\), got 7": lambda: data.in_streams(y >= 0, 7),  # type: ignore[arg-type]
        r"such as \(50, 150\), got \(3,\)": lambda: data.in_streams(y >= 0, (3,)),  # type: ignore[arg-type]
        "second stream has no rows": lambda: data.in_streams(y >= -1, (3, 7)),
        "partly_labelled": lambda: data.partly_labelled([0]),
        "alpha weighs .* got 'a'": lambda: fitted(data, guide_options={"alpha": "a"}),
        "alpha weighs .* got inf": lambda: fitted(data, guide_options={"alpha": float("inf")}),
        r"does not take x of an observation, \(6,\) numbers": lambda: fitted(
            data, guide_options={"network": torch.nn.Linear(5, 3)}
        ),
        "is a torch.nn.Module, got str": lambda: fitted(data, guide_options={"network": "mlp"}),
        r"puts out \(2, 6, 1\)": lambda: fitted(data, guide_options={"network": torch.nn.Unflatten(1, (6, 1))}),
        "does not take x and y .* use guide='semi_supervised'": lambda: bz.fit(
            bz.models.SemiSupervisedVAE(6, K), data, "amortized", progress=False
        ),
        "class 1 has no labelled picture": lambda: fitted(pictures(labelled=1, rows=3)),
    }
    for words, call in cases.items():
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("rows", "named"), [([0, 12], "12"), ([-1], "-1"), ([0.5], "0.5"), ("a", "'a'"), (torch.ones(3, dtype=torch.bool), "True")]
)
def test_rows_that_are_not_there_cannot_be_labelled(rows: Any, named: str) -> None:
    data = bz.data.Data({"x": torch.rand(12, 4)}, torch.arange(12) % 3)
    with pytest.raises(ValueError, match=f"labelled rows are whole numbers from 0 to 11, got {named}"):
        data.partly_labelled(rows)
    assert data.partly_labelled(torch.arange(12) < 3).observed["y"].tolist() == [0, 1, 2] + [-1] * 9
    for dtype in (torch.int16, torch.uint8):
        assert data.partly_labelled(torch.arange(3).to(dtype)).observed["y"].tolist() == [0, 1, 2] + [-1] * 9


def test_classes_that_are_none_are_not_decoded() -> None:
    model = bz.models.SemiSupervisedVAE(6, K, latents=2, hidden=(5,))
    with torch.no_grad():
        torch.testing.assert_close(
            model.decode(torch.zeros(2, 2), [0, 1]), model.decode(torch.zeros(2, 2), torch.tensor([0, 1]))
        )  # type: ignore[arg-type]
    for c in (torch.tensor([0, K]), torch.tensor([-1, 0]), torch.tensor([0.0, 1.0]), [0.0, 1.0], None, "a"):
        with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
            model.decode(torch.zeros(2, 2), c)  # type: ignore[arg-type]


def test_styles_that_are_none_are_not_decoded() -> None:
    model = bz.models.SemiSupervisedVAE(6, K, latents=2, hidden=(5,))
    c = torch.tensor([0, 1])
    for z, words in (
        (torch.zeros(2, 3), r"styles must have the shape \(N, 2\), got \(2, 3\)"),
        (torch.zeros(1, 2, 2), r"got \(1, 2, 2\)"),
        (torch.zeros(3, 2), "one for each of the 3 styles"),
        (None, "got NoneType"),
    ):
        with pytest.raises(ValueError, match=words):
            model.decode(z, c)  # type: ignore[arg-type]


def test_what_is_joined_by_the_class_has_one_value_and_pictures_are_checked_without_a_name() -> None:
    fit = fitted(pictures())
    assert fit.log_likelihood(5).shape == (5, len(fit.data))
    with pytest.raises(ValueError, match="'x' is summed together with y"):
        fit.log_likelihood(5, site="x")
    with pytest.raises(ValueError, match="unknown observed site 'X'"):
        fit.log_likelihood(5, site="X")
    assert set(fit.check_pictures(n=3, size=(2, 3)).observed) == set(fit.check_pictures(n=3, size=(2, 3), site="x").observed)


def test_bits_count_the_labels_that_are_there() -> None:
    data = pictures(labelled=6, rows=20)
    fit = bz.fit(bz.models.SemiSupervisedVAE(6, K, latents=2, hidden=(5,)), data, steps=3, compile=False, progress=False)
    found = fit.log_marginal(k=5)
    assert found.dims == pytest.approx(6 + 6 / 20)
    assert found.bits_per_dim == pytest.approx(-found.mean / (6.3 * 0.693147), rel=1e-5)


def test_unknown_labels_are_exported_as_unknown() -> None:
    data = pictures()
    tree = fitted(data).to_arviz(5, rows=len(data))
    # The class is summed over both sites together.
    assert tree["log_conditional"]["y_x"].attrs["site"] == "y, x"
    assert list(tree["log_conditional"].data_vars) == ["y_x"]
    assert isinstance(data.observed, dict)
    assert tree["observed_data"]["y"].to_numpy().tolist() == data.observed["y"].tolist()
    assert -1 in data.observed["y"]
