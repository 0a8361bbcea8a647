"""Batches through a recorded graph: the record's bookkeeping, with a recorder that runs the function again."""

from __future__ import annotations

import torch

from carzero.zeroshot.graphs import GraphedBatches, choose_graph


class Recorder:
    """Stands in for a CUDA graph: replays write into the recorded output, on the recorded input."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, function):
        self.captures += 1
        output = function()

        def replay() -> None:
            self.replays += 1
            output.copy_(function())

        return replay, output


def test_every_batch_up_to_the_size_and_beyond_uses_one_record() -> None:
    recorder = Recorder()
    graphed = GraphedBatches(lambda x: x.sum(-1, keepdim=True) * 2, 4, recorder)
    earlier = None
    for rows in (4, 1, 3, 4, 9):
        batch = torch.randn(rows, 5)
        got = graphed(batch)
        assert torch.equal(got, batch.sum(-1, keepdim=True) * 2)
        if earlier is not None:
            # a result is its own tensor: the next replay does not write over it
            assert torch.equal(*earlier)
        earlier = got, got.clone()
    assert (recorder.captures, recorder.replays) == (1, 4 + 3)


def test_another_shape_or_dtype_is_recorded_anew() -> None:
    recorder = Recorder()
    graphed = GraphedBatches(lambda x: x + 1, 2, recorder)
    for batch in (torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(1, 4, dtype=torch.float64)):
        assert torch.equal(graphed(batch), batch + 1)
    assert recorder.captures == 3


def test_when_a_graph_is_used() -> None:
    cuda = torch.device("cuda")
    assert choose_graph(cuda, "torch")[0]
    assert choose_graph(torch.device("cpu"), "cpp") == (False, "CUDA graphs are for CUDA devices, not for cpu")
    assert not choose_graph(cuda, "reference")[0]
