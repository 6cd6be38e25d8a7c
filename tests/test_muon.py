"""hd.run.muon: which weights move by Muon, where to, and that an interruption changes nothing."""

import pytest
import torch
from torch import nn

from hd.run import training
from hd.run.muon import Muon, hidden_weights, orthogonal


class Small(nn.Module):
    """A convolution, a tall and a flat matrix, a table, a head of few outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.convolution = nn.Conv2d(8, 16, 3, padding=1)
        self.tall, self.flat = nn.Linear(16, 32), nn.Linear(32, 16)
        self.table, self.head = nn.Embedding(9, 16), nn.Linear(16, 2)

    def forward(self, pictures):
        seen = self.convolution(pictures).mean((2, 3)) + self.table.weight[4]
        return self.head(self.flat(torch.relu(self.tall(seen))))


def made(**changes):
    model = Small()
    return model, Muon(model, **({"lr": 1e-2, "matrix_lr": 0.05, "betas": (0.9, 0.99)} | changes))


def one_step(model, optimizer, seed=0):
    torch.manual_seed(seed)
    loss = (model(torch.randn(12, 8, 5, 5)) - 1).pow(2).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def test_hidden_weights_are_those_of_layers_with_many_rows_and_columns():
    model = Small()
    assert [id(w) for w in hidden_weights(model)] == [
        id(layer.weight) for layer in (model.convolution, model.tall, model.flat)]


@pytest.mark.parametrize("shape", [(3, 16, 40), (3, 40, 16)])
def test_what_is_made_orthogonal_keeps_its_directions_and_has_them_of_one_size(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    sizes = u.mT @ orthogonal(matrices) @ v.mT
    assert torch.diagonal(sizes, dim1=1, dim2=2).sub(1).abs().max() < 0.4
    assert (sizes - torch.diag_embed(torch.diagonal(sizes, dim1=1, dim2=2))).abs().max() < 1e-3


def test_a_hidden_weight_moves_as_far_in_every_direction_however_small_its_gradient():
    (model, optimizer), (other, same) = made(), made()
    before = model.flat.weight.detach().clone()
    for this, scale in ((model, 1.0), (other, 1e-3)):
        for p in this.parameters():
            p.grad = scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
    optimizer.step()
    same.step()
    moved = model.flat.weight.detach() - before
    assert torch.linalg.svdvals(moved / 0.05).sub(1).abs().max() < 0.4
    torch.testing.assert_close(model.flat.weight, other.flat.weight, rtol=0, atol=1e-4)


def test_all_else_moves_as_by_adam():
    (model, optimizer), twin = made(), Small()
    adam = torch.optim.Adam(twin.parameters(), lr=1e-2, betas=(0.9, 0.99))
    one_step(model, optimizer)
    one_step(twin, adam)
    for name in ("table.weight", "head.weight", "head.bias", "tall.bias"):
        torch.testing.assert_close(model.get_parameter(name), twin.get_parameter(name))
    assert not torch.allclose(model.tall.weight, twin.tall.weight)


def test_it_learns_and_at_learning_rate_zero_it_does_not():
    model, optimizer = made()
    losses = [one_step(model, optimizer) for _ in range(20)]
    assert losses[-1] < 0.2 * losses[0]
    model, optimizer = made(lr=0.0)
    losses = [one_step(model, optimizer) for _ in range(3)]
    assert losses[0] == losses[-1]


def test_the_rate_of_hidden_weights_falls_with_that_of_the_rest():
    (model, optimizer), (other, slowed) = made(), made()
    before = model.tall.weight.detach().clone()
    for group in slowed.param_groups:
        group["lr"] *= 0.5
    one_step(model, optimizer)
    one_step(other, slowed)
    torch.testing.assert_close(other.tall.weight - before, (model.tall.weight - before) / 2)


def test_an_optimizer_that_is_put_back_goes_on_with_the_same_bits():
    model, optimizer = made()
    for seed in range(3):
        one_step(model, optimizer, seed)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    kept = {name: value.clone()
            for name, value in training.State(model, optimizer, scaler).tensors().items()}
    other, again = made()
    training.State(other, again, scaler).load(kept, scaler.state_dict())
    one_step(model, optimizer, 3)
    one_step(other, again, 3)
    for ours, theirs in zip(model.parameters(), other.parameters()):
        assert torch.equal(ours, theirs)
