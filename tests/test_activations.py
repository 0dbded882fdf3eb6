"""Activation functions are found whatever their spelling, in order, with the axis of their channels."""

import numpy as np
import onnx
import pytest
import torch
from small_graphs import EXPORTS, exported, values_of
from torch import Tensor, nn
from torch_models import FAMILIES, export

from calibrate.activations import find_activations
from calibrate.graph import find_sites

N_SITES = {"mlp": 2, "mobilenet": 7, "resnet": 17, "vgg": 4}
IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class SpelledHardSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * nn.functional.relu6(x + 3) / 6


class SpelledSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))


class SqueezeExcite(nn.Module):
    """SiLU, then channels gated by a sigmoid of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(x)
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class PreActivation(nn.Module):
    """A residual block of ResNet v2 whose BatchNorms are not folded into convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv1, self.conv2 = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))


class Tokens(nn.Module):
    """One layer of a transformer's feed-forward part, on (N, T, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


FUNCTIONS = {
    "relu": nn.ReLU(), "relu6": nn.ReLU6(), "leaky": nn.LeakyReLU(0.2), "elu": nn.ELU(), "prelu": nn.PReLU(4),
    "hardswish": nn.Hardswish(), "spelled hardswish": SpelledHardSwish(), "silu": nn.SiLU(), "mish": nn.Mish(),
    "spelled swish": SpelledSwish(), "gelu": nn.GELU(), "tanh gelu": nn.GELU(approximate="tanh"),
    "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "softplus": nn.Softplus(),
}  # fmt: skip


def _network(*layers: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Flatten(), nn.LazyLinear(5)).eval()


def _export(network: nn.Module, exporter: str, opset: int) -> onnx.ModelProto:
    network(IMAGES)
    return export(network, IMAGES, exporter=exporter, opset=opset)


def _names(model: onnx.ModelProto) -> list[str]:
    return [activation.function for activation in find_activations(model.graph)]


def _assert_one_site_ends_the_function(function: nn.Module, exporter: str, opset: int) -> None:
    network = _network(function)
    model = _export(network, exporter, opset)
    (site,) = find_sites(model)
    expected = network[:2](IMAGES).detach().numpy()
    np.testing.assert_allclose(values_of(model, site.tensor, IMAGES.numpy()), expected, atol=1e-5)
    assert (site.shape, site.channel_axis, site.dtype) == ((None, 4, 4, 4), 1, "float32")


@pytest.mark.parametrize(
    ("name", "opset"), [*((name, opset) for name in FUNCTIONS for opset in (11, 17)), ("gelu", 20), ("tanh gelu", 20)]
)
def test_every_function_of_torch_is_one_site_at_its_very_end(name, opset):
    _assert_one_site_ends_the_function(FUNCTIONS[name], "torchscript", opset)


@pytest.mark.parametrize("name", ["relu6", "silu", "tanh gelu"])
def test_every_function_is_found_in_the_current_exporters_graphs_too(name):
    _assert_one_site_ends_the_function(FUNCTIONS[name], "dynamo", 18)


@pytest.mark.parametrize(
    ("name", "opset", "function"),
    [
        ("relu6", 17, "Clip"),
        ("silu", 17, "GatedSigmoid"),
        ("gelu", 17, "GatedErf"),
        ("gelu", 20, "Gelu"),
        ("tanh gelu", 17, "GatedTanh"),
        ("mish", 17, "GatedSoftplus"),
        ("hardswish", 11, "GatedHardSigmoid"),
        ("hardswish", 17, "HardSwish"),
        ("spelled swish", 17, "GatedExp"),
    ],
)
def test_a_site_is_named_after_its_operator_or_the_first_nonlinear_one_inside(name, opset, function):
    assert _names(_export(_network(FUNCTIONS[name]), "torchscript", opset)) == [function]


@pytest.mark.parametrize(("exporter", "opset"), EXPORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_have_as_many_sites_as_activations(family, exporter, opset):
    sites = find_sites(exported(family, exporter, opset))
    assert len(sites) == N_SITES[family]
    assert {s.function for s in sites} == {"Clip" if family == "mobilenet" else "Relu"}


def test_sites_come_in_the_order_of_the_graph():
    model = exported("resnet", "torchscript", 17)
    order = [name for n in model.graph.node for name in n.output]
    tensors = [site.tensor for site in find_sites(model)]
    assert tensors == sorted(tensors, key=order.index)


def test_a_squeeze_and_excite_gate_is_a_site_of_its_own():
    assert _names(_export(_network(SqueezeExcite()), "torchscript", 17)) == ["GatedSigmoid", "Sigmoid"]


def test_a_pre_activation_block_has_both_its_activations():
    model = _export(_network(PreActivation()), "torchscript", 17)
    assert _names(model) == ["Relu", "Relu"]


def test_channels_are_last_after_a_linear_layer_on_tokens():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Tokens(), nn.Linear(4, 8), nn.GELU(), nn.Flatten(), nn.Linear(128, 5))
    (site,) = find_sites(_export(network, "torchscript", 17))
    assert (site.shape[-1], site.channel_axis) == (8, 2)


def test_channels_of_an_mlp_are_its_second_axis():
    assert {site.channel_axis for site in find_sites(exported("mlp", "torchscript", 17))} == {1}
