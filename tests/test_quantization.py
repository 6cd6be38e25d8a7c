"""hd.quantization: residual vector quantization, and the library's beside it."""


import numpy as np
import pytest
import torch
from tiny import refusal

from hd.config import InputError
from hd.quantization import LibraryVQ, kmeans, nearest
from hd.tokenizer import ResidualVQ

L, K, D = 3, 7, 5
COSTS = (0.05, 0.25, 0.60)


def vq(num_levels=L, num_codes=K, dim=D, **settings):
    return ResidualVQ(num_levels, num_codes, dim, **settings)


def embeddings(num_rows=40, dim=D, seed=3):
    return torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed))


def started(rows=None, **settings):
    """A tokenizer whose codebooks come from one batch, in eval mode."""
    model = vq(**settings)
    model(embeddings() if rows is None else rows)
    return model.eval()


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def is_same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def clustered(num_rows, *, num_clusters=32, dim=12, seed=0):
    """Rows around centres of very different popularity, and the spread around them."""
    generator = torch.Generator().manual_seed(seed)
    centres = 5 * torch.randn(num_clusters, dim, generator=generator)
    shares = torch.rand(num_clusters, generator=generator) ** 3 + 0.02
    chosen = torch.multinomial(shares, num_rows, replacement=True, generator=generator)
    return centres[chosen] + 0.3 * torch.randn(num_rows, dim, generator=generator)


def squared_error(model, rows):
    return (rows - model.decode(model.encode(rows))).pow(2).sum(1).mean().item()


# ---- the contract


def test_the_default_has_the_sizes_of_the_seed():
    assert ResidualVQ().codebooks.shape == (3, 256, 384)
    assert ResidualVQ().commitment_costs == COSTS


@pytest.mark.parametrize("lead", [(40,), (4, 10), (2, 4, 5)])
def test_any_leading_dimensions_are_kept(lead):
    out = vq()(embeddings().view(*lead, D))
    assert out.quantized.shape == (*lead, D)
    assert out.tokens.shape == (*lead, L) and out.tokens.dtype == torch.int64
    assert out.loss.shape == ()
    assert out.tokens.min() >= 0 and out.tokens.max() < K


def test_the_first_forward_in_training_starts_the_codebooks_from_that_batch():
    model = vq()
    assert not model.is_initialised
    model(embeddings())
    assert model.is_initialised
    assert all(book.std() > 0.01 for book in model.codebooks)


def test_fewer_rows_than_codes_cannot_start_the_codebooks():
    with pytest.raises(InputError, match=r"at least 7 rows.*got 6"):
        vq()(embeddings(6))
    vq()(embeddings(K))


def test_later_batches_may_be_smaller_than_the_codebook():
    model = vq()
    model(embeddings())
    assert model(embeddings(2)).tokens.shape == (2, L)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model(torch.zeros(4, D + 1)), "5 columns; got 6"),
        (lambda model: model.encode(torch.zeros(4, D + 1)), "5 columns; got 6"),
        (lambda model: model.decode(torch.zeros(4, 2, dtype=torch.long)), "3 levels; got 2"),
        (lambda model: vq(commitment_costs=(0.1, 0.2)), "as many commitment costs"),
        (lambda model: model(np.zeros((4, D))), "must be a tensor"),
        (lambda model: model(torch.tensor(1.0)), "must be a tensor"),
        (lambda model: model.eval()(torch.zeros(0, D)), "no rows"),
        (lambda model: model.decode([[0, 1, 2]]), "int64 tensor; got <class 'list'>"),
        (lambda model: model.decode(torch.zeros(4, L)), "int64 tensor; got torch.float32"),
        (lambda model: model.decode(torch.full((4, L), -1)), "from 0 to 6; got -1 to -1"),
        (lambda model: model.decode(torch.full((4, L), K)), "from 0 to 6; got 7 to 7"),
        (lambda model: kmeans(torch.zeros(4, D), K, iterations=2), "7 codes and 4 rows"),
        (lambda model: kmeans(torch.zeros(4, D), 0, iterations=2), "0 codes and 4 rows"),
        (lambda model: vq(kind="residul"), "unknown kind of quantization 'residul'; allowed: "),
        (lambda model: vq(num_levels=0), "at least 1; got 0, 7, 5 and 1"),
        (lambda model: vq(project_dim=-1), "project_dim must be from 0 to 5; got -1"),
        (lambda model: vq(num_codes=2, project_dim=4)(torch.randn(3, D)), "at least 4 rows"),
    ],
)
def test_what_does_not_fit_are_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call(vq())
    assert len(str(caught.value).splitlines()) == 1


def test_no_rows_have_no_codes_and_no_vectors():
    model = started()
    assert model.encode(torch.zeros(2, 0, D)).shape == (2, 0, L)
    assert model.decode(torch.zeros(0, L, dtype=torch.long)).shape == (0, D)


def test_in_eval_mode_nothing_changes_state():
    model = started()
    before = state(model)
    model(embeddings(seed=9))
    model.encode(embeddings(seed=9))
    model.decode(model.encode(embeddings(seed=9)))
    assert is_same(before, state(model))


def test_encoding_never_changes_state_and_leaves_the_mode_as_it_was():
    model = vq()
    model(embeddings())
    before = state(model)
    tokens = model.encode(embeddings(seed=9))
    assert model.training and is_same(before, state(model))
    with pytest.raises(InputError):
        model.encode(torch.zeros(2, D + 1))
    assert model.training
    assert torch.equal(tokens, model.eval()(embeddings(seed=9)).tokens)


def test_decoding_tokens_gives_exactly_the_quantized_vectors():
    model, x = started(), embeddings(30, seed=9)
    assert torch.equal(model.decode(model.encode(x)), model(x).quantized)


def test_the_levels_own_vectors_add_up_to_the_quantized_vector():
    model, x = started(), embeddings(30, seed=9).view(6, 5, D)
    tokens = model.encode(x)
    levels = model.decode(tokens, per_level=True)
    assert levels.shape == (6, 5, L, D)
    for level in range(L):
        assert torch.equal(levels[..., level, :], model.codebooks[level][tokens[..., level]])
    assert torch.equal(levels.sum(-2), model.decode(tokens))


def test_every_level_takes_the_nearest_code_to_what_is_left():
    model, x = started(), embeddings(30, seed=9)
    residual = x
    for level, tokens in enumerate(model.encode(x).unbind(-1)):
        distances = (residual[:, None] - model.codebooks[level][None]).pow(2).sum(-1)
        assert torch.equal(distances.argmin(1), tokens)
        residual = residual - model.codebooks[level][tokens]


def test_the_loss_is_the_weighted_mean_squared_distance_of_every_level():
    model, x = started(), embeddings(30, seed=9)
    levels = model.decode(model.encode(x), per_level=True)
    expected, residual = 0.0, x
    for cost, vectors in zip(COSTS, levels.unbind(1)):
        residual = residual - vectors
        expected += cost * residual.pow(2).mean()
    torch.testing.assert_close(model(x).loss, expected)


def test_the_loss_by_hand():
    model = vq(2, 2, 2, commitment_costs=(0.5, 2.0)).eval()
    model.codebooks.copy_(torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]]))
    out = model(torch.tensor([[1.0, 3.0]]))
    assert out.tokens.tolist() == [[0, 0]] and out.quantized.tolist() == [[1.0, 1.0]]
    assert out.loss.item() == 0.5 * 9 / 2 + 2.0 * 4 / 2


def test_one_level_is_plain_vector_quantization():
    model = started(num_levels=1)
    out = model(embeddings(30, seed=9))
    assert out.tokens.shape == (30, 1)
    assert torch.equal(out.quantized, model.codebooks[0][out.tokens[:, 0]])


def test_quantization_stays_in_float32_under_autocast():
    model, x = started(), embeddings(30, seed=9)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.quantized.dtype == torch.float32
    assert torch.equal(out.tokens, expected.tokens) and torch.equal(out.loss, expected.loss)


# ---- gradients


@pytest.mark.parametrize("cast", [torch.nn.Module.bfloat16, torch.nn.Module.half,
                                  torch.nn.Module.double])
def test_a_cast_of_the_model_around_leaves_codebooks_exactly_as_they_are(cast):
    model, rows = started(), embeddings()
    whole, cast_too = state(model), cast(torch.nn.Sequential(model))
    assert is_same(state(model), whole)
    assert torch.equal(cast_too(rows).tokens, model.encode(rows))
    model.train()(embeddings(seed=9))  # goes on learning
    assert model.counts.dtype == torch.float32 and not torch.equal(model.counts, whole["counts"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_embeddings_of_any_type_are_quantized_in_float32(dtype):
    model, rows = started(), embeddings().to(dtype)
    assert torch.equal(model.encode(rows), model.encode(rows.float()))
    assert torch.equal(model(rows).quantized, model(rows.float()).quantized)


def test_a_model_is_made_on_the_device_that_it_is_emptied_onto():
    with torch.device("meta"):
        model = vq()
    assert model.to_empty(device="cpu").codebooks.device.type == "cpu"


# ---- rows that are not finite


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("is_started", [False, True])
def test_a_row_that_is_not_finite_is_named_and_never_reaches_a_codebook(wrong, is_started):
    model, rows = started().train() if is_started else vq(), embeddings()
    rows[17, 2] = rows[30, 0] = wrong
    before = state(model)
    for use in (model, model.encode, lambda rows: model.loss({"embeddings": rows})):
        message = refusal(use, rows)
        assert "row 17 of 40 embeddings is not finite" in message and "2 such in all" in message
    assert is_same(state(model), before)
    model(embeddings())
    assert all(value.isfinite().all() for value in state(model).values())


def test_gradients_pass_straight_through_and_the_commitment_adds_its_own():
    model, x = started(), embeddings(30, seed=9).requires_grad_()
    out = model(x)
    weights = torch.randn(30, D)
    (gradient,) = torch.autograd.grad((out.quantized * weights).sum(), x, retain_graph=True)
    assert torch.equal(gradient, weights)
    (gradient,) = torch.autograd.grad(out.loss, x)
    expected, residual = 0.0, x.detach()
    for cost, vectors in zip(COSTS, model.decode(out.tokens, per_level=True).unbind(1)):
        residual = residual - vectors
        expected = expected + cost * 2 * residual / residual.numel()
    torch.testing.assert_close(gradient, expected)


def test_codebooks_are_buffers_that_no_optimizer_touches():
    model = vq()
    assert not list(model.parameters())
    assert {"codebooks", "counts", "sums", "is_initialised"} == set(model.state_dict())


def test_the_tokenizer_trains_together_with_an_encoder():
    model, network = vq(refill_below=0.0), torch.nn.Linear(4, D)
    model(network(torch.randn(40, 4)))
    out = model(network(torch.randn(40, 4)))
    (out.loss + out.quantized.pow(2).mean()).backward()
    assert network.weight.grad.abs().sum() > 0


# ---- how codebooks learn


def test_one_step_moves_codebooks_by_the_closed_form_of_moving_averages():
    model = vq(1, 3, 2, decay=0.75, refill_below=0.0, commitment_costs=(0.25,)).train()
    codes = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 90.0]])
    model.codebooks.copy_(codes[None])
    model.counts.copy_(torch.tensor([[2.0, 4.0, 8.0]]))
    model.sums.copy_(model.codebooks * model.counts[..., None])
    model.is_initialised.fill_(True)
    model(torch.tensor([[1.0, 1.0], [9.0, 2.0], [11.0, 4.0]]))
    counts = torch.tensor([0.75 * 2 + 0.25 * 1, 0.75 * 4 + 0.25 * 2, 0.75 * 8])
    sums = torch.tensor([[0.25 * 1, 0.25 * 1],
                         [0.75 * 40 + 0.25 * 20, 0.25 * 6],
                         [0.0, 0.75 * 720]])  # fmt: skip
    torch.testing.assert_close(model.counts[0], counts)
    torch.testing.assert_close(model.sums[0], sums)
    torch.testing.assert_close(model.codebooks[0], sums / counts[:, None])
    # A code that nobody picked stays where it was.
    torch.testing.assert_close(model.codebooks[0, 2], codes[2])


def test_later_levels_learn_from_what_earlier_levels_left():
    model = vq(2, K, D, refill_below=0.0, decay=0.0)
    model(embeddings())
    before = state(model)
    x = embeddings(seed=9)
    model(x)
    first = nearest(x, before["codebooks"][0])
    residual = x - before["codebooks"][0][first]
    second = nearest(residual, before["codebooks"][1])
    for code in second.unique():
        mean = residual[second == code].mean(0)
        torch.testing.assert_close(model.codebooks[1, code], mean)


def test_dead_codes_are_refilled_from_the_current_batch():
    model = vq(1, K, D, commitment_costs=(0.25,), refill_below=0.1)
    model(embeddings())
    model.codebooks[0, 2:4] = 1e3
    model.counts[0, 2:4] = 1e-4
    model.sums[0, 2:4] = 0.1
    x = embeddings(seed=9)
    model(x)
    is_row = (model.codebooks[0, 2:4, None] == x[None, None]).all(-1).any(-1)
    assert is_row.all()
    # Rounding of float32 aside, no code stays below a tenth of a fair share.
    assert (model.counts[0] >= 0.0999 * len(x) / K).all()


def test_without_refill_dead_codes_stay_dead():
    model = vq(1, K, D, commitment_costs=(0.25,), refill_below=0.0)
    model(embeddings())
    model.codebooks[0, 2] = 1e3
    model.counts[0, 2] = 1e-4
    for seed in range(9, 14):
        model(embeddings(seed=seed))
        assert (model.codebooks[0, 2] == 1e3).all()
    assert 2 not in model.encode(embeddings(seed=20))


def fit(model, steps=60, seed=0, batch_size=256):
    rows = clustered(4000)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        model(rows[torch.randint(len(rows), (batch_size,), generator=generator)])
    return model.eval()


def test_refilling_brings_codes_into_use():
    def usage(refill_below):
        torch.manual_seed(2)
        model = vq(1, 64, 12, refill_below=refill_below, kmeans_iterations=0)
        model.codebooks += 100.0  # an unlucky start: one code wins everything
        model.is_initialised.fill_(True)
        fit(model)
        return len(model.encode(clustered(4000)).unique())

    assert usage(0.0) <= 2
    assert usage(0.1) > 32


def test_the_kmeans_start_beats_a_random_start():
    def start_error(iterations):
        errors = []
        for seed in range(3):
            torch.manual_seed(seed)
            codebook = kmeans(clustered(1000), 16, iterations=iterations)
            rows = clustered(2000)
            errors.append((rows - codebook[nearest(rows, codebook)]).pow(2).sum(1).mean().item())
        return errors

    better, worse = start_error(10), start_error(0)
    assert max(better) < min(worse)


def test_a_start_without_kmeans_takes_distinct_rows_of_the_batch():
    x = embeddings()
    codebook = kmeans(x, K, iterations=0)
    match = (codebook[:, None] == x[None]).all(-1)
    assert (match.sum(1) == 1).all() and (match.sum(0) <= 1).all()


def test_kmeans_finds_clusters_that_are_far_apart():
    centres = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    rows = (centres[:, None] + torch.randn(3, 20, 2)).view(-1, 2)
    found = kmeans(rows, 3, iterations=20)
    error = (rows - found[nearest(rows, found)]).pow(2).sum(1).mean()
    # Two unit variances; a start with two rows of one cluster ends near 1,000 without restarts.
    assert error < 4 or (found[:, None] - centres[None]).norm(dim=-1).min(0).values.max() < 60


def test_every_level_lowers_the_error():
    torch.manual_seed(0)
    model = fit(vq(L, 16, 12))
    rows = clustered(2000, seed=0)
    levels = model.decode(model.encode(rows), per_level=True)
    totals = levels.cumsum(1)
    errors = [(rows - totals[:, level]).pow(2).sum(1).mean().item() for level in range(L)]
    assert rows.pow(2).sum(1).mean() > errors[0] > errors[1] > errors[2]
    assert errors[0] == pytest.approx(squared_error_of_level_0(model, rows))


def squared_error_of_level_0(model, rows):
    book = model.codebooks[0]
    return (rows - book[nearest(rows, book)]).pow(2).sum(1).mean().item()


@pytest.mark.parametrize("costs", [(0.25, 0.25, 0.25), (0.60, 0.25, 0.05), (0.0, 0.0, 0.0)])
def test_commitment_costs_cannot_change_a_single_token_of_a_frozen_input(costs):
    def trained(costs):
        torch.manual_seed(0)
        model = fit(vq(L, 16, 12, commitment_costs=costs), steps=30)
        return state(model), model.encode(clustered(500))

    (seed_state, seed_tokens), (other_state, other_tokens) = trained(COSTS), trained(costs)
    assert is_same(seed_state, other_state)
    assert torch.equal(seed_tokens, other_tokens)


@pytest.mark.parametrize("is_clustered", [True, False])
def test_our_reconstruction_is_as_good_as_the_librarys(is_clustered):
    library = pytest.importorskip("vector_quantize_pytorch")
    rows = clustered(3000, num_clusters=40, dim=8) if is_clustered else embeddings(3000, 8)
    rows, held_out = rows[:2000], rows[2000:]

    def error(model, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(40):
            model(rows[torch.randint(len(rows), (256,), generator=generator)])
        with torch.no_grad():
            return (held_out - model.eval()(held_out)[0]).pow(2).sum(1).mean().item()

    ours, theirs = [], []
    for seed in range(6):
        torch.manual_seed(seed)
        ours.append(error(vq(2, 16, 8, decay=0.9), seed))
        theirs.append(error(library.ResidualVQ(
            dim=8, num_quantizers=2, codebook_size=16, decay=0.9, kmeans_init=True,
            kmeans_iters=10, threshold_ema_dead_code=2, rotation_trick=False), seed))  # fmt: skip
    # Means over six starts, which alone move them by a tenth where clusters are far apart.
    assert np.mean(ours) < 1.15 * np.mean(theirs)


def test_nearest_codes_equal_those_of_a_plain_search():
    rows, book = embeddings(50), embeddings(K, seed=4)
    assert torch.equal(nearest(rows, book), torch.cdist(rows, book).argmin(1))


@pytest.mark.parametrize("offset", [10, 100, 1000])
def test_far_from_zero_codes_are_as_exact_as_near_it(offset):
    rows, book = embeddings(2000, 64) + offset, embeddings(100, 64, seed=4) + offset
    exact = torch.cdist(rows.double(), book.double(),
                        compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    # Of 2000 rows at most one is so near the middle between two codes that float32 decides.
    assert (nearest(rows, book) != exact).sum() <= 1


def test_unit_length_rows_keep_the_codes_of_the_plain_formula():
    # Even where they lie close together: published codes must not move.
    rows = torch.nn.functional.normalize(embeddings(500, 64) + 50, dim=1)
    book = rows[:40].clone()
    plain = torch.addmm(book.pow(2).sum(1), rows, book.T, alpha=-2).argmin(1)
    assert torch.equal(nearest(rows, book), plain)


def test_training_the_stage_is_the_same_for_the_same_random_state():
    def trained():
        torch.manual_seed(5)
        return state(fit(vq(L, 16, 12), steps=10))

    assert is_same(trained(), trained())


# ---- other ways to spend the same bits


def test_product_codes_quantize_each_slice_by_itself():
    rows = embeddings(300, 12)
    model = vq(L, K, 12, kind="product", kmeans_iterations=0)
    model(rows)
    model.eval()
    levels = model.decode(model.encode(rows), per_level=True)
    for level in range(L):
        outside = torch.ones(12, dtype=torch.bool)
        outside[4 * level:4 * level + 4] = False
        assert levels[:, level, outside].abs().max() == 0.0
        assert levels[:, level, ~outside].abs().max() > 0.0
    moved = rows.clone()
    moved[:, :4] += 5.0
    changed = model.encode(moved) != model.encode(rows)
    assert changed[:, 0].any() and not changed[:, 1:].any()


def test_a_number_of_levels_that_does_not_divide_the_width_is_refused():
    with pytest.raises(InputError, match="divides"):
        vq(L, K, 13, kind="product")


def test_a_projection_keeps_what_its_directions_span_and_nothing_else():
    generator = torch.Generator().manual_seed(1)
    plane = torch.linalg.qr(torch.randn(6, 2, generator=generator))[0].T
    rows = torch.randn(400, 2, generator=generator) @ plane + 3.0
    model = vq(2, 16, 6, project_dim=2)
    for _ in range(20):
        model(rows)
    model.eval()
    assert model.codebooks.shape == (2, 16, 2)
    decoded = model.decode(model.encode(rows))
    assert (rows - decoded).pow(2).mean() < 0.2 * (rows - rows.mean(0)).pow(2).mean()
    normal = torch.linalg.svd(plane).Vh[2:]
    assert (normal @ (decoded - 3.0).T).abs().max() < 1e-4  # nothing leaves the plane
    assert torch.allclose(model(rows).quantized, decoded, atol=1e-6)


def test_projected_levels_add_up_to_the_quantized_vector():
    rows = embeddings(300, 12)
    model = vq(L, K, 12, project_dim=5)
    model(rows)
    codes = model.eval().encode(rows)
    assert torch.allclose(model.decode(codes, per_level=True).sum(1), model.decode(codes),
                          atol=1e-5)


def test_a_projection_wider_than_the_vector_is_refused():
    with pytest.raises(InputError, match="from 0 to 12; got 13"):
        vq(L, K, 12, project_dim=13)


def test_the_library_answers_behind_the_same_interface():
    pytest.importorskip("vector_quantize_pytorch")
    rows = clustered(600)
    model = LibraryVQ(L, 16, dim=12, decay=0.9)
    for _ in range(10):
        loss = model.loss({"embeddings": rows})
    codes = model.eval().encode(rows)
    assert model.codebooks.shape == (L, 16, 12)
    assert codes.shape == (600, L) and codes.dtype == torch.int64
    assert torch.allclose(model.decode(codes), model(rows).quantized, atol=1e-4)
    assert torch.allclose(model.decode(codes, per_level=True).sum(-2), model.decode(codes),
                          atol=1e-4)
    assert loss.parts["squared_error"] < rows.pow(2).sum(1).mean()


def test_the_library_refuses_what_ours_refuses_and_keeps_its_type():
    pytest.importorskip("vector_quantize_pytorch")
    rows = clustered(100)
    model = LibraryVQ(L, 16, dim=12)
    assert "no rows" in refusal(model, rows[:0])
    rows[3, 0] = float("nan")
    assert "row 3 of 100 embeddings is not finite" in refusal(model, rows)
    model.bfloat16()(clustered(100).bfloat16())
    assert model.codebooks.dtype == torch.float32 and model.codebooks.isfinite().all()
    assert "from 0 to 15; got 16 to 16" in refusal(model.decode, torch.full((2, L), 16))


# ---- groups

def grouped(num_groups=4, **settings):
    torch.manual_seed(0)
    model = ResidualVQ(3, 7, 20, commitment_costs=[0.1] * 3, num_groups=num_groups, **settings)
    model(torch.randn(64, 20))
    return model.eval()


def test_groups_have_a_code_each_on_every_level_and_decode_to_what_was_quantized():
    model, x = grouped(), torch.randn(2, 5, 20)
    out = model(x)
    assert out.tokens.shape == (2, 5, 3, 4)
    assert torch.equal(model.encode(x), out.tokens)
    assert torch.allclose(model.decode(out.tokens), out.quantized, atol=1e-6)
    apart = model.decode(out.tokens, per_level=True)
    assert apart.shape == (2, 5, 3, 20)
    assert torch.allclose(apart.sum(-2), out.quantized, atol=1e-6)


def test_a_group_is_quantized_as_its_slice_alone_would_be():
    model = grouped()
    alone = ResidualVQ(3, 7, 5, commitment_costs=[0.1] * 3).eval()
    alone.codebooks.copy_(model.codebooks)
    x = torch.randn(6, 20)
    for group, part in enumerate(x.split(5, 1)):
        assert torch.equal(model.encode(x)[..., group], alone.encode(part))


def test_one_group_is_the_quantizer_without_groups():
    results = []
    for settings in ({}, {"num_groups": 1}):
        torch.manual_seed(0)
        model = ResidualVQ(3, 7, 20, commitment_costs=[0.1] * 3, **settings)
        out = model(torch.randn(64, 20))
        results.append((out.tokens, out.quantized, *model.state_dict().values()))
    assert results[0][0].shape == (64, 3)
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("num_groups", [3, 0])
def test_groups_that_do_not_divide_the_vector_are_refused(num_groups):
    with pytest.raises(InputError, match=r"equal groups|at least 1"):
        ResidualVQ(3, 7, 20, commitment_costs=[0.1] * 3, num_groups=num_groups)


def test_tokens_with_another_number_of_groups_are_refused():
    with pytest.raises(InputError, match="4 groups"):
        grouped().decode(torch.zeros(2, 3, 5, dtype=torch.int64))
