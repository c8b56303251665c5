"""The published presets against the facts of their papers and codes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kspace.errors import InputError
from kspace.operators import Sense
from models import dagan, gancs, kspacegan, reconglgan, refinegan, visual
from models.parts.interface import Gan, LearningRate, total
from models.parts.layers import to_channels
from models.systems import build, build_generator
from tests.support.scans import ellipses, scan


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts() -> None:
    with torch.device("meta"):
        assert count(dagan.PublishedDaganGenerator()) == 98_587_393
        assert count(dagan.PublishedDaganGenerator(dagan.PublishedDaganGeneratorOptions(refine=False))) == 98_587_393
        assert count(dagan.PublishedDaganDiscriminator()) == 48_141_633
        chain = refinegan.PublishedRefineGanGenerator()
        assert count(chain.reconstruct) == count(chain.refine) == 14_979_394
        assert count(chain) == 29_958_788
        assert count(refinegan.PublishedRefineGanDiscriminator()) == 11_002_433
        assert (
            count(refinegan.PublishedRefineGanDiscriminator(refinegan.PublishedRefineGanDiscriminatorOptions(batch_norm=True)))
            == 11_002_433
        )
        assert count(gancs.PublishedGancsGenerator()) == 3_118_978
        assert count(gancs.PublishedGancsDiscriminator()) == 65_785
        assert count(reconglgan.PublishedReconGlganGenerator()) == 31_044_289
        assert count(reconglgan.PublishedReconGlganDiscriminator()) == 9_063_681
        assert (
            count(
                reconglgan.PublishedReconGlganDiscriminator(reconglgan.PublishedReconGlganDiscriminatorOptions(context=False))
            )
            == 8_578_689
        )
        seitzer = visual.PublishedVisualGenerator()
        assert count(seitzer.blocks) == 31_302
        assert count(seitzer.refinement) == 920_033
        assert count(seitzer) == 31_302 + 920_033 + 1
        assert count(visual.PublishedVisualDiscriminator()) == 27_941_697


def sizes(network: Any, x: torch.Tensor) -> list[tuple[int, ...]]:
    found = []
    for layer in network:
        x = layer(x)
        found.append(tuple(x.shape[1:]))
    return found


def test_dagan_halves_eight_times() -> None:
    with torch.device("meta"):
        g = dagan.PublishedDaganGenerator()
        shapes = sizes(g.down, torch.empty(2, 1, 256, 256))
    assert shapes == [
        (64, 128, 128),
        (128, 64, 64),
        (256, 32, 32),
        (512, 16, 16),
        (512, 8, 8),
        (512, 4, 4),
        (512, 2, 2),
        (512, 1, 1),
    ]
    assert isinstance(g.down[0][1], nn.Identity), "no normalisation after the first and the last"
    assert isinstance(g.down[7][1], nn.Identity)


def test_dagan_refinement_adds_the_clipped_input() -> None:
    """Same weights with and without: clip(tanh + input, -1, 1) against tanh, seen from outside."""
    y, op, _ = scan((256, 256), n_coils=1, batch=(1,))
    plain = dagan.PublishedDaganGenerator(dagan.PublishedDaganGeneratorOptions(refine=False, width=2)).eval()
    refined = dagan.PublishedDaganGenerator(dagan.PublishedDaganGeneratorOptions(refine=True, width=2)).eval()
    refined.load_state_dict(plain.state_dict())
    tanh = 2 * plain(y, op).real - 1
    zero_filled = 2 * op.adjoint(y).abs() - 1
    torch.testing.assert_close(2 * refined(y, op).real - 1, (tanh + zero_filled).clamp(-1, 1), rtol=0, atol=1e-5)


def test_dagan_weights_of_code_and_paper() -> None:
    off = {"system": "dagan", "preset": "published", "generator": {"width": 2}, "discriminator": {"width": 2}}
    gan = build({**off, "losses": {"perceptual": 0.0}})
    assert {t.name: t.weight for t in gan.g_terms} == {"image": 15.0, "frequency": pytest.approx(6553.6), "adversarial": 1.0}
    y, op, target = scan((256, 256), n_coils=1, batch=(2,))
    step = gan.step(y, op, target)
    values = total(gan.g_terms, step)[1]
    x, t = (2 * a.detach().abs().numpy() - 1 for a in (step.image, target))
    root = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(x, t, strict=True)]
    assert values["image"].item() == pytest.approx(np.mean(root), rel=1e-4)
    moduli = [np.abs(np.fft.fft2((a + 1) / 2)) for a in (x, t)]
    published = 0.1 * ((moduli[0] - moduli[1]) ** 2).mean()
    assert 6553.6 * values["frequency"].item() == pytest.approx(published, rel=1e-3)
    paper = build({**off, "losses": {"variant": "paper", "perceptual": 0.0}})
    values = total(paper.g_terms, step)[1]
    assert values["image"].item() == pytest.approx(((x - t) ** 2).mean(), rel=1e-4)
    assert paper.g_terms[0].weight == 7.5


def test_refinegan_representation_is_that_of_8_bit_files() -> None:
    """The published forward model on the published representation, written out, against the generator's intermediates."""
    generator = refinegan.PublishedRefineGanGenerator(refinegan.PublishedRefineGanGeneratorOptions(width=2))
    value = torch.round(255 * ellipses((256, 256)).abs())
    scaled_re, scaled_im = (value / 255 - 0.5) * 2, (torch.zeros(256, 256) / 255 - 0.5) * 2
    mask = torch.rand(256, 256) < 0.3
    mask[128, 128] = True
    zero_filled = np.fft.ifft2(np.fft.fft2(torch.complex(scaled_re, scaled_im).numpy()) * np.fft.ifftshift(mask.numpy()))
    op = Sense(torch.ones(1, 256, 256, dtype=torch.complex64), mask)
    y = op.forward((value / 255).to(torch.complex64))
    # The origin of our transform is the centre; that of the published one the corner: a mask moved is the same operator.
    found = generator.intermediates(y, op)
    m = refinegan.display(found["start"])[0]
    np.testing.assert_allclose(m[0].numpy() + 1j * m[1].numpy(), zero_filled, atol=1e-4)
    for name in ("after_0", "image"):
        torch.testing.assert_close(op.forward(found[name]), y, rtol=0, atol=1e-4)
    assert (op.forward(found["before_1"]) - y).abs().max() > 1e-3
    added = to_channels(2 * (found["before_0"] - found["start"]))
    assert added.abs().max() <= 1, "the network ends in tanh"


def test_refinegan_without_the_data_consistency_of_the_code() -> None:
    y, op, _ = scan((256, 256), n_coils=1, batch=(1,))
    found = refinegan.PublishedRefineGanGenerator(
        refinegan.PublishedRefineGanGeneratorOptions(consistency=False, width=2)
    ).intermediates(y, op)
    assert torch.equal(found["before_0"], found["after_0"])
    assert torch.equal(found["before_1"], found["image"])


def test_refinegan_normalises_a_batch_as_batches_of_one() -> None:
    y, op, _ = scan((256, 256), n_coils=1, batch=(2,))
    generator = refinegan.PublishedRefineGanGenerator(refinegan.PublishedRefineGanGeneratorOptions(width=2))
    together = generator(y, op)
    alone = generator(y[1], Sense(op.maps[1], op.mask))
    torch.testing.assert_close(together[1], alone, rtol=1e-4, atol=1e-5)
    mixed = refinegan.PublishedRefineGanGenerator(refinegan.PublishedRefineGanGeneratorOptions(batch_norm=True, width=2))
    mixed.load_state_dict(generator.state_dict(), strict=False)
    assert (mixed(y, op)[1] - alone).abs().max() > 1e-4


def test_refinegan_loss_is_the_sum_of_the_published_single_terms() -> None:
    gan = build({"system": "refinegan", "preset": "published", "generator": {"width": 2}, "discriminator": {"width": 2}})
    y, op, target = scan((256, 256), n_coils=1, batch=(2,), lines=False)
    with torch.no_grad():
        step = gan.step(y, op, target)
        found = total(gan.g_terms, step)[0].item()
        expected = 0.0
        show = refinegan.display
        for before, after in (("before_0", "after_0"), ("before_1", "image")):
            for k in range(2):
                x = show(target[k])
                expected += 5 * (show(step.intermediates[after][k]) - x).abs().mean().item()
                expected += 500 * (show(step.intermediates[before][k]) - x).abs().mean().item()
                unnormalised = 256 * 2 * (op.forward(step.intermediates[before]) - y)[k]
                expected += 0.25 * to_channels(unnormalised).abs().mean().item()
                image = show(step.intermediates[after][k])
                expected += 1e-4 * (image.diff(dim=2).abs().sum() + image.diff(dim=3).abs().sum()).item()
                expected += 2 * -gan.discriminators[0](step.intermediates[after][k]).mean().item()
        kernels = [
            m.weight.abs().sum().item() for m in gan.generator.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
        ]
    assert found == pytest.approx(expected + 1e-5 * sum(kernels), rel=1e-3)


def test_refinegan_paper_is_a_log_gan() -> None:
    small = {"system": "refinegan", "preset": "published", "generator": {"width": 2}, "discriminator": {"width": 2}}
    gan = build({**small, "losses": {"variant": "paper"}})
    assert [t.name for t in gan.g_terms] == ["image", "kspace", "adversarial"]
    assert gan.g_terms[0].weight == 20
    only = build({**small, "losses": {"variant": "paper", "kspace": 0.0}})
    assert [t.name for t in only.g_terms] == ["image", "adversarial"], "a weight that is given is used"


def test_clipping_leaves_normalisation_alone_unless_asked() -> None:
    gan: Gan = build({"system": "refinegan", "preset": "published", "generator": {"width": 2}, "discriminator": {"width": 2}})
    wgan = gan.discriminators[0]
    norm = next(m for m in wgan.modules() if isinstance(m, nn.InstanceNorm2d))
    nn.init.ones_(norm.weight)
    gan.schedule.clamp(wgan)
    convs = [m.weight.abs().max().item() for m in wgan.modules() if isinstance(m, nn.Conv2d)]
    assert max(convs) == pytest.approx(0.01)
    assert norm.weight.min() == 1
    from dataclasses import replace

    replace(gan.schedule, clip_norms=True).clamp(wgan)
    assert norm.weight.max().item() == pytest.approx(0.01)


def test_gancs_projects_onto_the_null_space() -> None:
    y, op, _ = scan((32, 16), n_coils=1, lines=True)
    for variant in ("code", "paper"):
        generator = build_generator({"system": "gancs", "preset": "published", "generator": {"variant": variant, "width": 4}})
        found = generator.intermediates(y, op)
        null = found["proposal"] - op.normal(found["proposal"])
        torch.testing.assert_close(found["image"], null + found["start"], rtol=1e-4, atol=1e-5)


def test_gancs_shares_of_the_loss_never_turn_negative() -> None:
    gan = build({"system": "gancs", "preset": "published", "generator": {"width": 4}})
    weights = {t.name: t for t in gan.g_terms}
    assert set(weights) == {"image_l1", "adversarial"}
    for n in (0, 1999):
        assert weights["image_l1"].at(n) == 1
        assert weights["adversarial"].at(n) == 0
    for n in range(2000, 2020):
        f = min(1.0, 0.75 + 1 / math.sqrt(n - 1994))
        assert weights["image_l1"].at(n) == pytest.approx(f)
        assert weights["adversarial"].at(n) == pytest.approx(1 - f)
        assert weights["adversarial"].at(n) >= 0
    paper = build(
        {
            "system": "gancs",
            "preset": "published",
            "generator": {"width": 4},
            "losses": {"variant": "paper", "ssim": 0.2, "l1": 0.5},
        }
    )
    late = {t.name: t.at(10**9) for t in paper.g_terms}
    f = pytest.approx(0.975 * 0.8 * 0.5, rel=1e-3)
    assert late == {
        "image_l1": f,
        "image_l2": f,
        "ssim": pytest.approx(0.195, rel=1e-3),
        "kspace": 1.0,
        "adversarial": pytest.approx(0.025, rel=1e-2),
    }


def test_gancs_raw_starts_on_pixels_alone() -> None:
    ramp = gancs.Ramp(0.01, 500)
    assert [ramp(n) for n in (0, 499, 500, 750, 1000, 5000)] == pytest.approx([0, 0, 0, 0.005, 0.01, 0.01])


def test_reconglgan_cuts_image_and_target_at_the_same_place() -> None:
    x = torch.arange(2 * 10 * 12.0).reshape(2, 1, 10, 12)
    roi = torch.tensor([[2, 4, 6, 8], [8, 10, 10, 12]])
    cut = reconglgan.cut(x, roi, (4, 6))
    assert torch.equal(cut[0, 0], x[0, 0, 2:6, 3:9])
    assert torch.equal(cut[1, 0], x[1, 0, 6:10, 6:12]), "a window that would reach out is shifted inside"


def test_reconglgan_finds_the_region_of_highest_energy() -> None:
    target = torch.zeros(2, 16, 24, dtype=torch.complex64)
    target[0, 9:15, 3:12] = 1j
    target[1, 0:6, 15:24] = 2
    boxes = reconglgan.highest_energy(target)
    assert boxes.tolist() == [[9, 3, 15, 12], [0, 15, 6, 24]]


def test_boxes_of_the_data_set_win_where_there_are_any() -> None:
    gan = build({"system": "reconglgan", "generator": {"width": 4}})
    y, op, target = scan((32, 24))
    given = torch.tensor([[4, 4, 12, 12], [0, 0, 0, 0]])
    roi = gan.step(y, op, target, roi=given).roi
    assert roi is not None
    assert roi[0].tolist() == [4, 4, 12, 12]
    scale = gan.generator.scale(y, op)
    assert torch.equal(roi[1], reconglgan.highest_energy(target / scale)[1]), "a box without area is none"
    with pytest.raises(ValueError, match="regions of interest"):
        gan.discriminators[0](target)


def test_reconglgan_discriminator_sees_the_region() -> None:
    discriminator = reconglgan.PublishedReconGlganDiscriminator()
    image = torch.rand(1, 160, 160).to(torch.complex64)
    whole = discriminator.whole(image.abs()[None])
    local = discriminator.local(image.abs()[None][..., 40:100, 50:110])  # type: ignore[misc]
    expected = discriminator.join(torch.cat([whole[-1], local[-1]], 1))
    torch.testing.assert_close(discriminator(image, torch.tensor([[60, 70, 80, 90]])), expected)


@pytest.mark.parametrize(("system", "size"), [("dagan", 256), ("refinegan", 256), ("reconglgan", 160)])
def test_other_sizes_are_refused(system: str, size: int) -> None:
    generator = build_generator({"system": system, "preset": "published", "generator": {"width": 2}})
    y, op, _ = scan((64, 48), n_coils=1)
    with pytest.raises(InputError, match=f"takes {size}x{size} images, got 64x48; use its raw preset"):
        generator(y, op)


def test_optimisers_as_published() -> None:
    at = LearningRate(1e-4, "step", every=5, factor=0.5).at
    assert [at(0, epoch, 1) for epoch in (0, 4, 5, 10)] == pytest.approx([1e-4, 1e-4, 5e-5, 2.5e-5])
    rate = refinegan.ADAM.lr.at
    assert [rate(0, epoch, 1) for epoch in (0, 50, 100, 150, 500, 900)] == pytest.approx(
        [1e-4, 0.65e-4, 3e-5, 2.5e-5, 1e-6, 1e-6]
    )
    steps = LearningRate(1e-5, "step", "step", every=10_000, factor=0.5)
    assert [steps.at(n, 0, 1) for n in (9_999, 10_000)] == pytest.approx([1e-5, 5e-6])
    cosine = LearningRate(1.0, "cosine", warm_up=4)
    assert [cosine.at(n, 0, 100) for n in (0, 50, 100)] == pytest.approx([0.25, 0.5, 0], abs=1e-9)
    glgan = build({"system": "reconglgan", "preset": "published", "generator": {"width": 2}})
    assert isinstance(glgan.d_optimiser.build(glgan.discriminators[0].parameters()), torch.optim.SGD)
    adam = refinegan.ADAM.build(nn.Linear(1, 1).parameters())
    assert adam.defaults["betas"] == (0.5, 0.999)
    assert adam.defaults["eps"] == 1e-3
    with pytest.raises(ValueError, match="needs every"):
        LearningRate(1.0, "step")
    with pytest.raises(ValueError, match="needs points"):
        LearningRate(1.0, "piecewise")


# --------------------------------------------------------------------------------------------- k-space GAN, visual refinement


def test_the_kspace_gan_keeps_the_acquired_samples_and_predicts_the_others() -> None:
    y, op, _ = scan((256, 256), n_coils=1, batch=(1,))
    generator = kspacegan.PublishedKspaceGanGenerator(kspacegan.PublishedKspaceGanGeneratorOptions(width=2)).eval()
    found = generator.intermediates(y, op)
    torch.testing.assert_close(op.forward(found["middle"]), y, rtol=0, atol=1e-5)
    other = op.forward(found["predicted"]) - y
    assert other.abs().max() > 1e-3, "before the replacement the network's own samples stand there"
    alone = kspacegan.PublishedKspaceGanGenerator(kspacegan.PublishedKspaceGanGeneratorOptions(dual=False, width=2)).eval()
    alone.load_state_dict(generator.state_dict(), strict=False)
    assert torch.equal(alone(y, op), found["middle"]), "the form of 2017 ends in k-space"


def test_missing_entries_hold_noise_in_training_only() -> None:
    y, op, _ = scan((256, 256), n_coils=1, batch=(1,))
    generator = kspacegan.PublishedKspaceGanGenerator(kspacegan.PublishedKspaceGanGeneratorOptions(width=2, dual=False))
    generator.eval()
    assert torch.equal(generator(y, op), generator(y, op))
    seen: list[torch.Tensor] = []
    generator.predict.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    generator.train()
    generator(y, op)
    added = seen[0] - to_channels(y[:, 0])
    sampled = op.mask.expand(1, 1, 256, 256).expand_as(added)
    assert added[sampled].abs().max() < 1e-5
    assert 0.009 < added[~sampled].abs().max() <= 0.0101


def test_the_error_of_missing_samples_counts_nothing_else() -> None:
    gan = build({"system": "kspacegan", "preset": "published", "generator": {"width": 2}, "discriminator": {"width": 2}})
    y, op, target = scan((256, 256), n_coils=1, batch=(1,))
    step = gan.step(y, op, target)
    k = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(step.target[0].numpy()), norm="ortho"))
    off = ~op.mask.expand(1, 256, 256)[0].numpy()
    shifted = np.where(off, k + 0.3, k + 100)
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(shifted), norm="ortho"))
    given = replace(step, intermediates={"image": step.image, "predicted": torch.from_numpy(image.astype(np.complex64))[None]})
    assert kspacegan.missing_samples(given).item() == pytest.approx(0.09 / np.abs(k).max(), rel=1e-3)


def test_visual_refinement_adds_a_scaled_change_of_the_real_part() -> None:
    y, op, _ = scan((512, 512), n_coils=1, batch=(1,))
    generator = visual.PublishedVisualGenerator(visual.PublishedVisualGeneratorOptions(width=2)).eval()
    found = generator.intermediates(y, op)
    assert torch.equal(found["image"], found["cascade"]), "the factor starts at zero"
    torch.testing.assert_close(op.forward(found["cascade"]), y, rtol=0, atol=1e-5)
    with torch.no_grad():
        generator.factor.fill_(0.5)
    found = generator.intermediates(y, op)
    real = found["cascade"].real
    low, high = real.min(), real.max()
    scaled = 2 * (real - low) / (high - low) - 1 + 0.5 * found["added"].real
    torch.testing.assert_close(found["image"].real, (scaled + 1) / 2 * (high - low) + low, rtol=0, atol=1e-5)
    assert torch.equal(found["image"].imag, found["cascade"].imag)
    paper = visual.PublishedVisualGenerator(visual.PublishedVisualGeneratorOptions("paper", width=2))
    assert paper.refinement.last.out_channels == 2


def test_the_second_stage_leaves_the_cascade_alone() -> None:
    config = {"system": "visual", "generator": {"width": 4, "refine_width": 4}, "discriminator": {"width": 4}}
    gan = build({**config, "losses": {"first_stage": 3}})
    y, op, target = scan(batch=(2,))
    generator: Any = gan.generator
    with torch.no_grad():
        generator.refinement.factor.fill_(0.1)
    for number, trained, still in (
        (2, generator.networks, generator.refinement),
        (3, generator.refinement, generator.networks),
    ):
        generator.zero_grad()
        total(gan.g_terms, gan.step(y, op, target, number=number))[0].backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained.parameters())
        assert not any(p.grad is not None and p.grad.abs().max() > 0 for p in still.parameters())


def test_the_discriminator_of_visual_refinement_ends_in_13x13_logits() -> None:
    with torch.device("meta"):
        shapes = sizes(visual.PublishedVisualDiscriminator().layers, torch.empty(2, 1, 512, 512))
    assert [s[0] for s in shapes] == [64, 128, 256, 512, 1024, 1024, 1]
    assert shapes[-2:] == [(1024, 16, 16), (1, 13, 13)]
