"""The motion network: its cost volume by hand and against a plain loop, its symmetries, and that it can learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.common.cost_volume import correlate
from models.common.pwc_lite import DenseMotion, MotionNetwork
from models.mosis.motion import SegmentMotion


@pytest.fixture
def network() -> MotionNetwork:
    torch.manual_seed(0)
    return MotionNetwork(search_range=2, widths=(8, 8, 12), channels=10)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("height", "width"), [(5, 7), (4, 32), (6, 24), (2, 2)])
def test_cost_volume_and_its_gradients_agree_with_a_loop_over_displacements(height: int, width: int) -> None:
    a, b = (noise(2, 3, height, width, seed=seed).double().requires_grad_() for seed in (0, 1))
    expected = torch.stack(
        [(a * torch.roll(b, (-dy, -dx), dims=(2, 3))).sum(1) for dy in range(-2, 3) for dx in range(-2, 3)], dim=1
    )  # roll by -d brings b(x + d) to x
    costs = correlate(a, b, 2)
    torch.testing.assert_close(costs, expected)
    upstream = noise(*costs.shape, seed=2).double()
    for found, wanted in zip(*(torch.autograd.grad(c, (a, b), upstream) for c in (costs, expected)), strict=True):
        torch.testing.assert_close(found, wanted)


def test_cost_volume_computes_in_the_type_of_autocast() -> None:
    a, b = noise(1, 8, 4, 16).requires_grad_(), noise(1, 8, 4, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        costs = correlate(a, b, 2)
    assert costs.dtype == torch.bfloat16
    torch.testing.assert_close(costs.float(), correlate(a, b, 2), atol=0.02, rtol=0.02)
    costs.float().sum().backward()
    assert a.grad is not None
    assert a.grad.dtype == torch.float32


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, -1), (-4, 4)])
def test_a_circular_shift_peaks_at_its_displacement_everywhere(dx: int, dy: int) -> None:
    features = torch.nn.functional.normalize(noise(1, 16, 12, 16) - 0.5)
    costs = correlate(features, torch.roll(features, (dy, dx), dims=(2, 3)), 4)
    assert (costs.argmax(1) == (dy + 4) * 9 + (dx + 4)).all()


def test_cost_volume_gradients() -> None:
    a = noise(1, 2, 3, 4).double().requires_grad_()
    b = noise(1, 2, 3, 4, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: correlate(x, y, 1), (a, b))


def test_frames_that_do_not_fit_are_refused(network: MotionNetwork) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        network(noise(1, 3, 36, 32), noise(1, 3, 36, 32))
    with pytest.raises(ValueError, match="larger frames"):
        network(noise(1, 3, 8, 32), noise(1, 3, 8, 32))


def test_features_have_full_resolution_and_both_ways_is_each_way(network: MotionNetwork) -> None:
    a, b = noise(2, 3, 32, 48), noise(2, 3, 32, 48, seed=1)
    there = network(a, b)
    assert there.shape == (2, network.channels, 32, 48)
    assert network.channels == 10
    forward, backward = network.both_ways(a, b)
    torch.testing.assert_close(forward, there)
    torch.testing.assert_close(backward, network(b, a))


def test_the_border_is_no_special_place(network: MotionNetwork) -> None:
    a, b = noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1)
    moved = network(torch.roll(a, (8, 16), (2, 3)), torch.roll(b, (8, 16), (2, 3)))
    torch.testing.assert_close(moved, torch.roll(network(a, b), (8, 16), (2, 3)), atol=1e-5, rtol=1e-4)


def test_readouts_give_one_vector_a_segment_and_a_pixel() -> None:
    assert SegmentMotion(10)(noise(2, 5, 10)).shape == (2, 5, 2)
    assert SegmentMotion(10)(noise(2, 0, 10)).shape == (2, 0, 2)
    linear = [m for m in SegmentMotion(10).modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 2  # eq. 7: a two-layer MLP
    assert DenseMotion(10)(noise(2, 10, 4, 6)).shape == (2, 2, 4, 6)


def test_every_parameter_learns(network: MotionNetwork) -> None:
    network(noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.usefixtures("one_thread")
def test_supervised_motion_learns_translations() -> None:
    """Section 9.2 in small: dense motion, squared error. Guessing "no motion" costs the mean square of the motions."""
    torch.manual_seed(0)
    network = MotionNetwork(search_range=2, widths=(16, 24), channels=16)
    head = DenseMotion(network.channels)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    costs = []
    for _ in range(60):
        frames = torch.rand(4, 3, 16, 16, generator=generator)
        frames = torch.nn.functional.interpolate(frames, scale_factor=2.0, mode="nearest")
        motion = torch.randint(-3, 4, (4, 2), generator=generator)
        moved = [torch.roll(f, (int(v), int(u)), (1, 2)) for f, (u, v) in zip(frames, motion, strict=True)]
        predicted = head(network(frames, torch.stack(moved)))
        cost = (predicted - motion[:, :, None, None]).square().mean()
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert sum(costs[:5]) / 5 > 3  # the mean square of a draw from -3 ... 3 is 4
    assert sum(costs[-10:]) / 10 < 1.2, costs[-10:]


def test_a_motion_found_at_the_coarsest_level_reaches_the_frame_in_its_own_pixels(network: MotionNetwork) -> None:
    parameters = dict(network.named_parameters())
    for name, parameter in parameters.items():
        if ".flow." in name:
            torch.nn.init.zeros_(parameter)
    parameters["matchers.2.flow.bias"].data = torch.tensor([1.0, -0.5])
    features = network(noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1))
    expected = torch.tensor([8.0, -4.0]).view(1, 2, 1, 1).expand(1, 2, 32, 32)  # the coarsest level has stride 8
    torch.testing.assert_close(features[:, -2:], expected)
