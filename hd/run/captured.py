"""Functions as CUDA graphs: what launches many small kernels one by one is launched at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hd.run.machine import device

WARM_UP = 3  # calls before the capture, in which libraries choose and allocate what they need


def captured(function: Callable[..., dict]) -> Callable[..., dict]:
    """On a GPU the function as a CUDA graph, see Captured; elsewhere the function itself."""
    return Captured(function) if device().type == "cuda" else function


class Captured:
    """function(**inputs) -> {name: tensor}, whose work is captured once and replayed from then on.

    Every call gives tensors of the same shapes and types, from any device; what is no tensor stays
    as it was at the first call. The function may change other tensors in place, among them weights,
    and may draw from the GPU's own generator; it must not look at a value, nor let a shape depend
    on one. What is returned is overwritten by the next call. Raises ValueError for other inputs.
    """

    def __init__(self, function: Callable[..., dict]):
        self.function, self.calls = function, 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: dict = {}
        self.outputs: dict[str, torch.Tensor] = {}

    def __call__(self, **inputs) -> dict[str, torch.Tensor]:
        self._take(inputs)
        self.calls += 1
        if self.graph is None:
            here = torch.cuda.current_stream()
            self.stream.wait_stream(here)
            if self.calls <= WARM_UP:
                with torch.cuda.stream(self.stream):
                    self._run()
                here.wait_stream(self.stream)
                return self.outputs
            self.graph = torch.cuda.CUDAGraph()
            # Relaxed: other threads may prepare what comes next while this one captures.
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="relaxed"):
                self._run()
        self.graph.replay()
        return self.outputs

    def _take(self, inputs: dict) -> None:
        if not self.calls:
            self.inputs = {name: torch.empty_like(value, device=device())
                           if isinstance(value, torch.Tensor) else value
                           for name, value in inputs.items()}
        if inputs.keys() != self.inputs.keys():
            raise ValueError(f"a captured function takes {', '.join(self.inputs)}; got "
                             f"{', '.join(inputs)}")
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor):
                kept = self.inputs[name]
                if (value.shape, value.dtype) != (kept.shape, kept.dtype):
                    raise ValueError(f"{name} was captured as {kept.dtype} of {tuple(kept.shape)}; "
                                     f"got {value.dtype} of {tuple(value.shape)}")
                kept.copy_(value, non_blocking=True)

    def _run(self) -> None:
        for name, value in self.function(**self.inputs).items():
            if name in self.outputs:
                self.outputs[name].copy_(value)
            else:
                self.outputs[name] = value.clone()
