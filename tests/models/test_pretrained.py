"""A pretrained backbone with a Bayesian last layer: what people do at work, on torchvision's ResNet-18 and a folder of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import bayeszoo as bz

torchvision = pytest.importorskip("torchvision")


@pytest.fixture
def pictures(tmp_path: Path) -> bz.data.Data:
    """Forty pictures of 32 x 32 in two folders, reddish or bluish."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for label in ("blue", "red"):
        folder = tmp_path / label
        folder.mkdir()
        for number in range(20):
            pixels = generator.integers(0, 120, (32, 32, 3))
            pixels[:, :, 0 if label == "red" else 2] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    folder = torchvision.datasets.ImageFolder(str(tmp_path), transform=torchvision.transforms.ToTensor())
    images, labels = zip(*folder, strict=True)
    return bz.data.from_arrays(torch.stack(images), torch.tensor(labels))


def test_resnet_18_with_a_bayesian_last_layer(pictures: bz.data.Data) -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=2)
    with torch.no_grad():  # what pretraining leaves behind beside weights: statistics of batch norm, momentum 0.1
        for _ in range(30):
            net.train()(pictures.inputs["x"])
    model = bz.models.BayesianNN(net, bayesian="last", freeze=True)
    assert set(model.sites) == {"fc.weight", "fc.bias"}
    fit = bz.fit(model, pictures, guide="mean_field", steps=60, optimizer=0.1, progress=False, compile=False)
    prediction = fit.predict(pictures.inputs, n=50)
    # A random ResNet's features tell colours apart; chance is 0.5.
    assert float((prediction.label == pictures.observed).double().mean()) > 0.9
    for name, buffer in net.named_buffers():  # running means and variances are those of the given network
        assert torch.equal(buffer, dict(fit.model.net.named_buffers())[name]), name
    backbone = {name: p for name, p in net.named_parameters() if not name.startswith("fc.")}
    for name, parameter in backbone.items():
        assert torch.equal(parameter, dict(fit.model.net.named_parameters())[name]), name


def test_all_layers_bayesian_is_refused_for_its_batch_norm() -> None:
    with pytest.raises(ValueError, match=r"layer 'bn1' is batch norm .*bayesian='last'"):
        bz.models.BayesianNN(torchvision.models.resnet18(num_classes=2))
