"""CUDA graphs: what a captured function takes, gives and does, with and without a GPU."""

import contextlib

import pytest
import torch

from hd.config import PROFILES
from hd.place_model import PlaceModel
from hd.run import captured, training

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Recorded:
    """Stands for a CUDA graph: what was recorded runs at every replay, and only then."""

    made: "Recorded | None" = None

    def __init__(self):
        self.replays = 0
        Recorded.made = self

    def replay(self):
        self.replays += 1
        self.work()


@pytest.fixture
def without_gpu(monkeypatch):
    """A stand-in for torch.cuda. As on a GPU, what is captured is not run."""
    class Stream:
        def wait_stream(self, other):
            pass

    @contextlib.contextmanager
    def capture(graph, stream, capture_error_mode):
        taken = captured.Captured._run
        captured.Captured._run = lambda made: setattr(graph, "work", lambda: taken(made))
        try:
            yield
        finally:
            captured.Captured._run = taken

    monkeypatch.setattr(captured, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", capture)


def counting():
    total = torch.zeros(2)

    def add(*, x, sign):
        total.add_(sign * x)
        return {"total": total}

    return add


def test_each_call_runs_once_and_gives_what_the_function_gives(without_gpu):
    made, plain = captured.Captured(counting()), counting()
    for i in range(captured.WARM_UP + 3):
        x = torch.tensor([1.0, i])
        assert torch.equal(made(x=x, sign=-1)["total"], plain(x=x, sign=-1)["total"]), i
    assert Recorded.made.replays == 3


def test_what_is_returned_stays_in_its_place_and_is_overwritten(without_gpu):
    made = captured.Captured(counting())
    first = made(x=torch.ones(2), sign=1)["total"]
    assert first.tolist() == [1, 1]
    for _ in range(captured.WARM_UP + 1):
        assert made(x=torch.ones(2), sign=1)["total"] is first
    assert first.tolist() == [captured.WARM_UP + 2] * 2


@pytest.mark.parametrize(("inputs", "says"), [
    ({"x": torch.ones(3), "sign": 1}, "x was captured as torch.float32 of \\(2,\\); got "
                                      "torch.float32 of \\(3,\\)"),
    ({"x": torch.ones(2, dtype=torch.int64), "sign": 1}, "got torch.int64 of"),
    ({"x": torch.ones(2)}, "takes x, sign; got x")])
def test_inputs_of_another_kind_are_refused(without_gpu, inputs, says):
    made = captured.Captured(counting())
    made(x=torch.ones(2), sign=1)
    with pytest.raises(ValueError, match=says):
        made(**inputs)


def test_on_a_cpu_a_function_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(captured, "device", lambda: torch.device("cpu"))
    function = counting()
    assert captured.captured(function) is function


@GPU
def test_captured_updates_are_the_updates():
    cfg, ends = PROFILES["smoke"].place_model, []
    for wrap in (captured.Captured, lambda function: function):
        torch.manual_seed(0)
        model = PlaceModel(cfg, torch.randn(3, 16, 144), 49).cuda()
        optimizer = training.make_optimizer(model, cfg)
        for group in optimizer.param_groups:
            group["capturable"] = True
        scaler = torch.amp.GradScaler("cuda", enabled=False)
        update = wrap(lambda model=model, optimizer=optimizer, scaler=scaler, **batch:
                      training.update(model, [batch], optimizer, scaler, None, cfg))
        generator = torch.Generator().manual_seed(1)
        for _ in range(captured.WARM_UP + 5):
            batch = {"tokens": torch.randint(16, (8, cfg.steps, 3, 49), generator=generator),
                     "next": torch.randint(16, (8, 3, 49), generator=generator),
                     "actions": torch.randint(18, (8, cfg.steps), generator=generator),
                     "rewards": torch.zeros(8), "continues": torch.ones(8)}
            update(**training.to_device(batch, torch.device("cuda")))
        ends.append(model.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], msg=name)
