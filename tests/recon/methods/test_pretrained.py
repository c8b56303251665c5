"""Networks of the packages fastmri and deepinv, with random weights that these saved."""

from __future__ import annotations

import sys
from pathlib import Path

import fastmri
import pytest
import torch
from fastmri.models import Unet, VarNet
from torch import nn

from kspace.errors import InputError
from kspace.operators import Sense
from recon.compare.methods import choose
from recon.methods.pretrained import load as pretrained
from tests.support.scans import scan


@pytest.fixture
def varnet(tmp_path: Path) -> tuple[VarNet, Path]:
    torch.manual_seed(0)
    network = VarNet(num_cascades=2, sens_chans=2, sens_pools=2, chans=3, pools=2).eval()
    torch.save(network.state_dict(), tmp_path / "varnet.pt")
    return network, tmp_path / "varnet.pt"


@pytest.fixture
def unet(tmp_path: Path) -> tuple[Unet, Path]:
    torch.manual_seed(0)
    network = Unet(1, 1, chans=4, num_pool_layers=3).eval()
    torch.save({"state_dict": {f"unet.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "unet.ckpt")
    return network, tmp_path / "unet.ckpt"


@pytest.fixture
def modl(tmp_path: Path) -> tuple[nn.Module, Path]:
    models = pytest.importorskip("deepinv.models")
    torch.manual_seed(0)
    network = models.MoDL(models.DnCNN(2, 2, depth=4, nf=4, pretrained=None), num_iter=2).eval()
    torch.save({"state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "modl.pt")
    return network, tmp_path / "modl.pt"


def test_modl_gives_what_the_package_gives_on_its_own_operator(modl: tuple[nn.Module, Path]) -> None:
    from deepinv.physics import MultiCoilMRI

    network, path = modl
    y, op, _ = scan((40, 33), n_coils=3, batch=())
    physics = MultiCoilMRI(mask=op.mask.expand(1, 1, 40, 33).float(), coil_maps=op.maps[None])
    torch.testing.assert_close(torch.view_as_complex(physics.A_adjoint(as_channels(y)[None])[0].movedim(0, -1).contiguous()),
                               op.adjoint(y), rtol=1e-4, atol=1e-5)  # fmt: skip
    scale = op.adjoint(y).abs().max()
    with torch.no_grad():
        expected = scale * network(as_channels(y)[None] / scale, physics)[0]
    torch.testing.assert_close(as_channels(pretrained.load(path)(y, op)), expected, rtol=1e-4, atol=1e-5)


def as_channels(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x).movedim(-1, 0)


def test_a_package_that_is_not_installed_is_named(modl: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepinv.models", None)
    with pytest.raises(InputError, match=r"modl.pt: deepinv is not installed; pip install 'mri-gan-recon\[deepinv\]'"):
        pretrained.load(modl[1])


def test_varnet_gives_what_the_package_gives_with_our_maps(varnet: tuple[VarNet, Path]) -> None:
    """The package's own forward pass, its map network replaced by our maps: its root sum of squares is our magnitude."""
    network, path = varnet
    y, op, _ = scan((40, 32), n_coils=3, batch=(2,))

    class Given(nn.Module):
        def forward(self, *_: object) -> torch.Tensor:
            return torch.view_as_real(op.maps.mT.contiguous())

    network.sens_net = Given()
    k, mask = torch.view_as_real(y.mT.contiguous()), op.mask.expand_as(y).mT[..., None]
    maps = torch.view_as_real(op.maps.mT.contiguous())
    current = k
    for cascade in network.cascades:
        current = cascade(current, k, mask, maps)
    with torch.no_grad():
        expected = network(k, mask).mT
        combined = fastmri.complex_mul(fastmri.ifft2c(current), fastmri.complex_conj(maps)).sum(1)
    image = pretrained.load(path)(y, op)
    torch.testing.assert_close(image, torch.view_as_complex(combined.detach()).mT, rtol=1e-4, atol=1e-5)
    assert (image.abs() <= expected + 1e-4).all(), "Cauchy-Schwarz: at most the root sum of squares"


def test_unet_gives_what_the_package_gives_for_a_normalised_magnitude(unet: tuple[Unet, Path]) -> None:
    network, path = unet
    y, op, _ = scan((40, 32), n_coils=1, batch=())
    filled = fastmri.complex_abs(fastmri.ifft2c(torch.view_as_real(y.mT.contiguous())))
    mean, std = filled.mean(), filled.std()
    with torch.no_grad():
        expected = (network(((filled - mean) / std)[None].clamp(-6, 6))[0, 0] * std + mean).clamp(min=0).mT
    image = pretrained.load(path)(y, op)
    torch.testing.assert_close(image.real, expected, rtol=1e-4, atol=1e-5)
    assert image.imag.abs().max() == 0


@pytest.mark.parametrize("kind", ["varnet", "unet", "modl"])
def test_they_are_homogeneous_leave_zeros_and_see_only_acquired_samples(kind: str, request: pytest.FixtureRequest) -> None:
    reconstruct = pretrained.load(request.getfixturevalue(kind)[1])
    y, op, _ = scan((40, 33), n_coils=3, batch=(2,))
    y[1] = 0
    image = reconstruct(y, op)
    assert image.shape == (2, 40, 33)
    assert image[0].abs().max() > 0
    assert image[1].abs().max() == 0
    torch.testing.assert_close(reconstruct(1e-5 * y, op) / 1e-5, image, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(reconstruct(y + 7 * ~op.mask, op), image)
    alone = reconstruct(y[0], Sense(op.maps[0], op.mask))
    torch.testing.assert_close(alone, image[0], rtol=1e-4, atol=1e-5)


def test_they_take_part_in_a_comparison(varnet: tuple[VarNet, Path]) -> None:
    path = varnet[1]
    (method,) = choose("theirs", [f"theirs={path}"], device="cpu")
    said = method.says()
    assert said["details"] == {"package": "fastmri", "network": "VarNet", "weights": "varnet", "refine": "none"}
    assert said["weights_sha256"] == pretrained.load(path).sha256
    with pytest.raises(InputError, match=r"varnet.pt is of another package, and is not refined; ask for theirs"):
        choose("theirs+stack", [f"theirs={path}"], device="cpu")


class Touch:
    """Would make a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_other_files_are_refused(tmp_path: Path, varnet: tuple[VarNet, Path]) -> None:
    with pytest.raises(InputError, match=r"there is no such file of weights"):
        pretrained.load(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(InputError, match=r"text.pt: damaged, or more than tensors .*; save the state_dict alone"):
        pretrained.load(tmp_path / "text.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(InputError, match=r"empty.pt: damaged, or more than tensors \(EOFError\)"):
        pretrained.load(tmp_path / "empty.pt")
    torch.save({"state_dict": Touch(tmp_path / "touched")}, tmp_path / "code.pt")
    with pytest.raises(InputError, match=r"more than tensors"):
        pretrained.load(tmp_path / "code.pt")
    assert not (tmp_path / "touched").exists()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"neither a VarNet or U-Net of fastmri nor a MoDL of deepinv"):
        pretrained.load(tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match=r"no state_dict"):
        pretrained.load(tmp_path / "list.pt")
    state = varnet[0].state_dict()
    state.pop("cascades.1.dc_weight")
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(InputError, match=r"not the weights of a VarNet of fastmri: cascades.1.dc_weight is missing"):
        pretrained.load(tmp_path / "part.pt")
