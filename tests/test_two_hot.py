"""hd.two_hot: real numbers as distributions over bins."""

import math

import torch

from hd.two_hot import TwoHot, symexp, symlog


def test_symexp_inverts_symlog():
    x = torch.tensor([-1e4, -2.5, -1e-3, 0.0, 0.7, 3e5])
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-5, atol=0)  # float32 exponentials
    torch.testing.assert_close(symlog(torch.tensor([-(math.e - 1), 0.0, math.e ** 2 - 1])),
                               torch.tensor([-1.0, 0.0, 2.0]))


VALUES = torch.tensor([-22_025.0, -1234.5, -21.0, -1.0, -0.01, 0.0, 0.3, 1.0, 7.0, 500.0, 22_025.0])


def test_two_hot_decodes_what_it_encoded():
    two_hot = TwoHot()
    decoded = two_hot.decode(two_hot.encode(VALUES).log())
    # Relative to the bins next to the value, which are 0.38 apart around zero.
    torch.testing.assert_close(decoded, VALUES, rtol=1e-5, atol=1e-6)


def test_two_hot_puts_all_weight_on_at_most_two_neighbouring_bins():
    shares = TwoHot(num_bins=63).encode(VALUES.view(1, -1))
    assert shares.shape == (1, len(VALUES), 63)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, len(VALUES)))
    for row in shares[0]:
        used = row.nonzero().flatten()
        assert len(used) <= 2
        assert used[-1] - used[0] <= 1


def test_two_hot_of_a_hand_made_case():
    two_hot = TwoHot(num_bins=3, limit=math.log(5))  # bins at -4, 0 and 4
    torch.testing.assert_close(two_hot.encode(torch.tensor([-4.0, -1.0, 0.0, 3.0])), torch.tensor(
        [[1.0, 0, 0], [0.25, 0.75, 0], [0, 1.0, 0], [0, 0.25, 0.75]]), rtol=0, atol=1e-6)


def test_two_hot_clamps_values_beyond_its_bins():
    two_hot = TwoHot()
    decoded = two_hot.decode(two_hot.encode(torch.tensor([-1e9, 1e9])).log())
    torch.testing.assert_close(decoded, symexp(torch.tensor([-10.0, 10.0])))


def test_two_hot_loss_is_smallest_at_the_encoded_value():
    two_hot = TwoHot()
    shares = two_hot.encode(VALUES)
    entropy = -(shares * shares.clamp_min(1e-30).log()).sum(-1)
    best = shares.clamp_min(1e-30).log().requires_grad_()
    loss = two_hot.loss(best, VALUES)
    torch.testing.assert_close(loss, entropy, rtol=0, atol=1e-5)
    loss.sum().backward()
    assert best.grad.abs().max() < 1e-6  # softmax(logits) - encode(value)
    for _ in range(5):
        other = two_hot.loss(best + torch.randn_like(best), VALUES)
        assert (other > entropy - 1e-6).all()
        assert other.mean() > entropy.mean() + 0.01


def test_two_hot_loss_of_one_who_knows_nothing_is_the_log_of_the_number_of_bins():
    two_hot = TwoHot(num_bins=63)
    loss = two_hot.loss(torch.zeros(len(VALUES), 63), VALUES)
    torch.testing.assert_close(loss, torch.full_like(VALUES, math.log(63)))
