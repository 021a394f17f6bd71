"""The families of methods: each learns, and each keeps to what its source says."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from skimage.exposure import equalize_hist
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_divergence

from test_training import DAE, PDDPM, SIZE, UNET, fit, phantom_slices
from uad.evaluate import average_precision
from uad.evaluate.reconstruct import Reconstructor, load_network
from uad.methods import families, load
from uad.methods.base import Setup
from uad.methods.diffusion import MaskingOptions, corrupt
from uad.networks.convolutional import kl_divergence
from uad.networks.gan import gradient_penalty
from uad.train.batches import TrainingSet

torch.set_num_threads(1)
CODE = {"channels": [8, 16], "latent": 8, "dropout": 0.1}
MASKED = {**PDDPM, "masking": {"half_width": [1, 4], "margin": 1}}
#: family -> name -> options, loss, training loop
CASES = {
    "adversarial": {
        "f-anogan": ({**CODE, "critic_steps": 1}, "l2", {"epochs": 20, "learning_rate": 2e-3})
    },
    "autoencoder": {
        "ae": (CODE, "l1", {"epochs": 20}),
        "vae": ({**CODE, "variational": True}, "l1", {"epochs": 40}),
    },
    "control": {
        "oracle": ({"answer": "oracle"}, "l1", {}),
        "random": ({"answer": "random"}, "l1", {}),
        "intensity": ({"answer": "intensity"}, "l1", {}),
        "position": ({"answer": "position"}, "l1", {}),
    },
    "denoising": {"dae": (DAE, "l2", {})},
    "diffusion": {
        "pddpm-iqa": (PDDPM, "fusion", {"epochs": 20, "validate_every": 10, "learning_rate": 0.01}),
        "mddpm": (MASKED, "l1", {"epochs": 20}),
        "ddpm": ({"network": UNET}, "l1", {"epochs": 20}),
    },
    "sequential": {"svae": ({**CODE, "sequence": 4, "heads": 2}, "l1", {"epochs": 20})},
    "thresholding": {"thresh": ({}, "l1", {})},
}
NAMES = [(family, name) for family in families() for name in CASES.get(family, ["no entry"])]
LEARNING = [
    pytest.param(*case, marks=[pytest.mark.slow] * (case[1] in ("ddpm", "mddpm", "vae")))
    for case in NAMES
]


def make(family, name=None, size=SIZE, **options):
    """A method of ``CASES`` with some options changed."""
    given, loss, _ = CASES[family][name or next(iter(CASES[family]))]
    quality = {"clamp": True} if loss == "fusion" else {}
    return load(family)({**given, **options}, Setup(loss, quality, image_size=(size, size)))


def dark_slices(n, seed):
    """The phantom, far from the grey of an untrained generator: its sigmoid gives 0.5."""
    data = phantom_slices(n, seed)
    return TrainingSet(0.4 * data.images, data.masks, data.slices)


def batch(n=4, size=SIZE):
    """Slices with a square brain of random intensities, and its masks."""
    masks = torch.zeros(n, 1, size, size, dtype=torch.bool)
    masks[..., size // 8 : -size // 8, size // 6 : -size // 6] = True
    return torch.rand(n, 1, size, size, generator=seeded(7)) * masks, masks


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def restore(method, network, images, masks, seed=0):
    with torch.inference_mode():
        return method.reconstruct(network, images, masks, 500, seeded(seed))


def count(module):
    return sum(p.numel() for p in module.parameters())


# All families


@pytest.mark.parametrize(("family", "name"), LEARNING)
def test_every_family_learns_to_restore_a_healthy_volume(family, name, tmp_path):
    assert name in CASES.get(family, {}), f"give the family '{family}' an entry in CASES"
    method = make(family, name)
    draw = dark_slices if family == "adversarial" else phantom_slices
    healthy = np.swapaxes(draw(1, 9).images[0].numpy(), 0, 2)

    def error(network):
        restored = Reconstructor(method, network, t_test=500, batch=6)
        return np.abs(restored.volume(healthy, healthy > 0, seed=1) - healthy).mean()

    if not method.trained:
        assert method.scores
        return
    loop = CASES[family][name][2]
    facts = fit(method, draw(4, 0), draw(2, 1), tmp_path, **loop)
    assert facts["val_loss_of_weights"] < 0.8 * facts["val_loss_before"]
    assert np.isfinite(pd.read_csv(tmp_path / "history.csv")["train_loss"][1:]).all()
    torch.manual_seed(0)
    before = error(method.build().eval())
    assert error(load_network(method, tmp_path / "model.safetensors")) < 0.8 * before


@pytest.mark.parametrize(("family", "name"), NAMES)
def test_reconstructing_leaves_its_input_alone_and_repeats_itself(family, name):
    method = make(family, name)
    network = method.build().eval() if method.trained else None
    images, masks = batch(5)
    given = images.clone(), masks.clone()
    first = restore(method, network, images, masks)
    assert first.shape == images.shape and first.isfinite().all()
    assert torch.equal(images, given[0]) and torch.equal(masks, given[1])
    assert torch.equal(first, restore(method, network, images, masks))


@pytest.mark.parametrize(("family", "name"), [n for n in NAMES if n[0] != "diffusion"])
def test_the_background_of_a_reconstruction_is_0(family, name):
    method = make(family, name)
    network = method.build().eval() if method.trained else None
    images, masks = batch()
    assert (restore(method, network, images, masks)[~masks] == 0).all()


@pytest.mark.parametrize(
    ("family", "name", "millions"),
    [
        ("autoencoder", "ae", 1.52),
        ("autoencoder", "vae", 1.82),
        ("sequential", "svae", 1.82),
        ("adversarial", "f-anogan", 1.80),
        ("diffusion", "ddpm", 34.49),
        ("diffusion", "mddpm", 37.51),
    ],
)
def test_parameters_at_paper_size(family, name, millions):
    options = {
        "vae": {"variational": True},
        "mddpm": {"network": {"scale_shift": True}, "patch_grid": [2, 2], "masking": {}},
    }
    method = load(family)(options.get(name, {}), Setup(image_size=(96, 96)))
    assert method.problems(method.options, (96, 96)) == []
    with torch.device("meta"):
        assert round(count(method.build()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("autoencoder", {"channels": [8] * 4}, "4 stages need slices larger than 16 and div"),
        ("autoencoder", {"channels": [8] * 3}, None),
        ("autoencoder", {"channels": [8, 4]}, "the last of the channels must be at least 8"),
        ("adversarial", {"channels": [8] * 4}, "4 stages need slices larger than 16 and div"),
        ("sequential", {"channels": [8] * 4}, "4 stages need slices larger than 16 and div"),
        ("sequential", {"latent": 10, "heads": 4}, "4 heads do not divide a latent of 10"),
        ("diffusion", {"masking": {"sides": [0.2, 0.1]}}, "masking.sides must rise within 0 to 1"),
        ("diffusion", {"masking": {"half_width": [2, 13]}}, "half_width must rise within 1 to 12"),
        ("denoising", {"channels": [8] * 4, "pixel_block": 2}, "4 levels on blocks of 2x2 pixels"),
        ("thresholding", {}, None),
    ],
)
def test_options_that_cannot_work_are_named(family, options, message):
    family = load(family)
    found = family.problems(family.Options.model_validate(options), (24, 24))
    assert message is None or any(message in problem for problem in found)
    assert message is not None or found == []


# AE and VAE


def test_the_divergence_is_that_of_torch():
    mean, log_std = torch.randn(2, 5, 7, generator=seeded())
    expected = reference_divergence(Normal(mean, log_std.exp()), Normal(0, 1)).sum(dim=1)
    torch.testing.assert_close(kl_divergence(mean, log_std), expected)


def test_the_autoencoder_loss_is_the_error_summed_over_an_image():
    method = make("autoencoder", "ae")
    network = method.build().eval()
    images, masks = batch()
    loss = method.training_loss(network, images, masks, seeded())
    expected = (network(images) - images).abs().sum() / len(images)
    torch.testing.assert_close(loss, expected)


def test_the_vae_adds_the_weighted_divergence_and_samples_in_training_only():
    images, masks = batch()
    torch.manual_seed(0)
    network = make("autoencoder", "vae").build().eval()

    def loss(weight, seed=0):
        method = make("autoencoder", "vae", kl_weight=weight)
        return method.training_loss(network, images, masks, seeded(seed))

    divergence = kl_divergence(*network.encode(images)).mean()
    torch.testing.assert_close(loss(2.0) - loss(0.0), 2 * divergence)
    assert loss(0.0, seed=1) != loss(0.0) == loss(0.0)
    method = make("autoencoder", "vae")
    restored = (restore(method, network, images, masks, seed) for seed in (0, 1))
    assert torch.equal(*restored)


@pytest.mark.parametrize(
    ("channels", "size", "widths", "small"),
    [
        ([32, 64, 128], 96, [128, 64, 32], (16, 12, 12)),
        ([32, 64, 128, 128], 128, [128, 64, 32, 32], (16, 8, 8)),
    ],
    ids=["paper size", "as published"],
)
def test_the_autoencoder_has_the_published_stages(channels, size, widths, small):
    with torch.device("meta"):
        network = make("autoencoder", "ae", size, channels=channels, latent=128).build()
    down, up = (
        [m for m in part.stages.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        for part in (network.encoder, network.decode)
    )
    assert [m.out_channels for m in down] == channels
    assert [m.out_channels for m in up] == widths
    assert {(*m.kernel_size, *m.stride) for m in down + up} == {(5, 5, 2, 2)}
    assert network.decode.shape == small


# SVAE


@pytest.mark.parametrize("depth", [1, 3, 4, 6, 8, 9])
def test_windows_of_neighbouring_slices_tile_a_volume_of_any_depth(depth):
    method = make("sequential")
    seen = []

    def probe(x):
        seen.extend(x[:, 0, 0, 0].long().unflatten(0, (-1, 4)).tolist())
        return x + 1

    images = torch.arange(depth).float().view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    restored = method.reconstruct(probe, images, torch.ones_like(images), 1, seeded())
    assert torch.equal(restored, images + 1)
    starts = {1: [0], 3: [0], 4: [0], 6: [0, 2], 8: [0, 4], 9: [0, 4, 5]}[depth]
    assert seen == [[min(s + i, depth - 1) for i in range(4)] for s in starts]


def test_a_slice_of_the_svae_sees_its_place_in_its_run_and_no_other_run():
    method = make("sequential")
    assert (method.sequence, method.whole_volume, make("autoencoder").sequence) == (4, True, 1)
    network = method.build().eval()
    images, masks = batch(8)
    changed = images.clone()
    changed[1] = 0
    with torch.inference_mode():
        moved = (network(images) != network(changed)).flatten(1).any(dim=1)
        place = network(images[:1].expand(4, 1, SIZE, SIZE)).flatten(1)
    assert moved.tolist() == [True] * 4 + [False] * 4
    assert len(place.unique(dim=0)) == 4
    assert method.training_loss(network, images, masks, seeded()).isfinite()


# f-AnoGAN


def take_step(method, network, progress, optimizers=None):
    images, masks = batch()
    optimizers = optimizers or method.optimizers(network, 1e-2)

    def update(loss, number):
        optimizers[number].zero_grad()
        loss.backward()
        optimizers[number].step()

    return method.training_step(network, images, masks, seeded(), update, progress)


@pytest.mark.parametrize("slope", [0.0, 1.0, 3.0])
def test_the_gradient_penalty_of_a_linear_critic_follows_from_its_slope(slope):
    critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False))
    critic[1].weight.data.fill_(slope / 8)
    real, fake = torch.rand(2, 5, 1, 8, 8, generator=seeded())
    penalty = gradient_penalty(critic, real, fake, seeded())
    assert penalty.item() == pytest.approx((slope - 1) ** 2, abs=1e-5)
    penalty.backward()
    assert critic[1].weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("progress", "trained"), [(0.0, {"generator", "critic"}), (0.6, {"encoder"})]
)
def test_each_stage_trains_its_networks_and_freezes_the_others(progress, trained):
    method = make("adversarial")
    network = method.build()
    for _ in range(2):  # the second time from the flags that the first one left
        before = {k: v.clone() for k, v in network.state_dict().items()}
        values = take_step(method, network, progress)
        after = network.state_dict()
        moved = {k.partition(".")[0] for k in before if not torch.equal(before[k], after[k])}
        assert moved == trained
        modes = {name: module.training for name, module in network.named_children()}
        # dropout of the generator belongs to the GAN's stage
        frozen = {name for name, training in modes.items() if not training}
        assert frozen == (set() if progress < 0.6 else {"generator", "critic"})
        assert method.selectable(progress) == (progress >= 0.6)
        assert "train_loss" in values
        assert all(v.isfinite() and not v.requires_grad for v in values.values())


def test_the_history_of_the_gan_names_what_each_stage_measured(tmp_path):
    """Five epochs of the GAN, three of the encoder."""
    data = dark_slices(4, 0), dark_slices(2, 1)
    facts = fit(make("adversarial"), *data, tmp_path, validate_every=1)
    assert facts["weights_of_epoch"] > 5
    history = pd.read_csv(tmp_path / "history.csv").set_index("epoch")
    stages = {
        "distance penalty generator": [1, 2, 3, 4, 5],
        "image features": [6, 7, 8],
        "loss": range(1, 9),
    }
    assert {c for c in history if c.startswith("train_")} == {
        f"train_{name}" for names in stages for name in names.split()
    }
    for names, epochs in stages.items():
        for name in names.split():
            assert history.index[history[f"train_{name}"].notna()].tolist() == list(epochs)
    assert history["val_loss"].notna().all()
    assert history["step"].diff()[1:].tolist() == [4 * 2] * 5 + [4] * 3


# Thresh


def test_thresh_is_the_equalisation_of_scikit_image_within_the_brain():
    images, masks = batch(6)
    images = images**2
    score = restore(make("thresholding"), None, images, masks)
    expected = equalize_hist(images.double().numpy(), nbins=256, mask=masks.numpy())
    np.testing.assert_allclose(score, expected * masks.numpy(), atol=1e-6)


# DDPM, pDDPM and mDDPM


def test_pddpm_keeps_the_input_outside_the_patch_and_tiles_all_patches():
    method = make("diffusion", "pddpm-iqa")
    calls = []

    def probe(x, levels):
        calls.append((x.clone(), levels.clone()))
        return torch.full_like(x, 0.5)

    images, _ = batch(3)
    restored = method.reconstruct(probe, images, images > 0, 750, seeded())
    assert torch.allclose(restored, torch.full_like(images, 0.75))
    assert len(calls) == 4
    for x, levels in calls:
        assert (levels == 749).all()
        assert 0 < (x != images * 2 - 1).float().mean() <= 0.25


def corrupted(n=200, **options):
    images, masks = batch(n, 96)
    shown = corrupt(images, masks, MaskingOptions(**options), seeded())
    return images, masks, shown, shown != images


def test_masking_changes_rectangles_of_the_published_sizes_inside_the_brain():
    _, masks, _, changed = corrupted(rectangles=1)
    assert not (changed & ~masks).any()
    rows = masks[0, 0].any(dim=1).nonzero()[:, 0]
    columns = masks[0, 0].any(dim=0).nonzero()[:, 0]
    sides = set()
    for image in changed[:, 0][changed.flatten(1).any(dim=1)]:
        where = [image.any(dim=1 - axis).nonzero()[:, 0] for axis in (0, 1)]
        assert image.sum() == len(where[0]) * len(where[1])
        sides |= {len(w) for w in where}
        for found, covered in zip(where, (rows, columns), strict=True):
            assert covered[0] + 5 <= found[0] and found[-1] < covered[-1] - 5
    assert sides == set(range(int(0.09 * len(rows)), int(0.18 * len(rows)) + 1))


def test_masking_shows_a_low_or_high_pass_of_the_image():
    images, _, shown, changed = corrupted(12)
    spectra = np.fft.fftshift(np.fft.fft2(images[:, 0].double().numpy()), axes=(1, 2))
    found = set()
    for spectrum, result, where in zip(spectra, shown[:, 0], changed[:, 0], strict=True):
        matches = []
        for half, high in product(range(2, 11), (False, True)):
            square = np.zeros((96, 96))
            square[48 - half : 48 + half, 48 - half : 48 + half] = 1
            kept = 1 - square if high else square
            expected = np.fft.ifft2(np.fft.ifftshift(spectrum * kept)).real
            if np.allclose(result[where], expected[where], atol=1e-5):
                matches.append(high)
        if where.any():
            assert len(matches) == 1
            found.add(matches[0])
    assert found == {False, True}


def test_masking_takes_brains_of_any_shape_and_slices_without():
    images, masks = batch(50, 96)
    y, x = torch.meshgrid(torch.arange(96) - 48, torch.arange(96) - 48, indexing="ij")
    masks &= x.square() + y.square() < 30**2
    masks[0] = False
    masks[1, :, :45], masks[1, :, 48:] = False, False
    images = images * masks
    for options in ({}, {"margin": 0, "sides": (0.3, 0.4)}):
        shown = corrupt(images, masks, MaskingOptions(**options), seeded())
        changed = shown != images
        assert shown.isfinite().all() and not changed[0].any()
        assert changed.any() and not (changed & ~masks).any()


def test_the_input_of_mddpm_is_corrupted_in_training_only_and_its_target_is_clean():
    images, masks = batch(8)
    method = make("diffusion", "mddpm", patch_grid=None)
    plain = make("diffusion", "mddpm", patch_grid=None, masking=None)
    seen = []

    def perfect(x, levels):
        seen.append(x)
        return images * 2 - 1

    assert method.training_loss(perfect, images, masks, seeded()) == 0
    for one in (method, plain):
        for loss in (one.validation_loss, one.reconstruct):
            level = (500,) if loss == one.reconstruct else ()
            loss(perfect, images, masks, *level, seeded())
    assert torch.equal(seen[1], seen[3]) and torch.equal(seen[2], seen[4])
    assert not any(torch.equal(seen[0], x) for x in seen[1:])


# Pixel blocks


@pytest.mark.parametrize("scale_shift", [False, True], ids=["DDPM", "pDDPM"])
def test_pixel_blocks_fold_pixels_into_channels_and_unfold_them_again(scale_shift):
    from uad.networks.pixel_blocks import PixelBlocks
    from uad.networks.unet import diffusion_unet

    images, seen = torch.rand(2, 1, 8, 12), []

    def untouched(x, levels):
        seen.append((tuple(x.shape), levels))
        return x

    assert torch.equal(PixelBlocks(untouched, 2)(images, "levels"), images)
    assert seen == [((2, 4, 4, 6), "levels")]

    sizes = {**UNET, "scale_shift": scale_shift}
    plain, folded = diffusion_unet(**sizes), diffusion_unet(**sizes, pixel_block=2)
    # three more planes into the first convolution, three more (each with a bias) out of the last
    assert count(folded) - count(plain) == 3 * 9 * 8 + 3 * (9 * 8 + 1)
    assert folded(torch.rand(2, 1, 8, 8), torch.tensor([3, 900])).shape == (2, 1, 8, 8)


# Controls


def test_the_oracle_scores_the_lesion_and_random_knows_nothing():
    _, masks = batch(8, 48)
    lesion = (torch.rand(masks.shape, generator=seeded(3)) < 0.05) & masks
    oracle, chance = make("control", "oracle"), make("control", "random")
    assert (oracle.sees_lesions, chance.sees_lesions) == (True, False)
    assert torch.equal(restore(oracle, None, lesion.float(), masks), lesion.float())
    scores = restore(chance, None, torch.zeros(masks.shape), masks)
    assert (scores[~masks] == 0).all()
    assert scores[masks].mean() == pytest.approx(0.5, abs=0.02)
    found = average_precision(scores[masks].numpy(), lesion[masks].numpy())
    assert found == pytest.approx(float(lesion[masks].float().mean()), rel=0.15)


def test_intensity_and_position_know_one_thing():
    images, masks = batch(5, 48)
    scores = restore(make("control", "intensity"), None, images, masks)
    assert torch.equal(scores, images)
    scores = restore(make("control", "position"), None, images, masks)
    assert [float(each[mask].unique()) for each, mask in zip(scores, masks, strict=True)] == (
        pytest.approx([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])
    )
    assert (scores[~masks] == 0).all()
