"""The mask: takes heads out of a request's forward, on prompt and answer.

A masked request carries a named nnsight edit and says in its `extra_args` which heads to mask and how. One edit
serves every mask. What it is given at a module is this request's rows of the step alone, as a view of what the model
goes on to read, so writing into it masks this request and no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retrieval_heads.plain import Fields
from retrieval_heads.tracing.worker import runner

EDIT = "rh_mask"
"""The edit's name; a request that lists it in `nnsight_edits` is masked."""

REFERENCE_EDIT = "rh_reference"
"""The name of the edit that takes the mean of every head's output, for masks of mode `mean`."""

ARGUMENT = "rh_mask"
"""The key of `extra_args`: the fields of `Mask`, or the reference's name."""

_references: dict[str, list[Reference]] = {}


@dataclass
class Reference:
    """Sum of a layer's head outputs over a reference text's tokens, `[heads × head_size]`, and how many tokens."""

    total: Tensor
    tokens: int = 0

    @property
    def mean(self) -> Tensor:
        """`[heads × head_size]`."""
        return self.total / self.tokens


@dataclass(frozen=True)
class Mask:
    """What a request wants masked.

    Args:
        mode: One of `retrieval_heads.ablation.arms.MODES`.
        heads: By index of the layer among those that can be masked.
        prompt_tokens: Where the answer starts.
        reference: Names the text whose mean replaces a head's output.
    """

    mode: str
    heads: Mapping[int, Sequence[int]]
    prompt_tokens: int
    reference: str

    @classmethod
    def of_request(cls) -> Mask:
        """The mask of the request whose block runs now."""
        fields = _argument(EDIT)
        heads: dict[int, list[int]] = {}
        for layer, head in sorted(fields["heads"]):
            heads.setdefault(layer, []).append(head)
        return cls(fields["mode"], heads, fields["prompt_tokens"], fields["reference"])

    @property
    def is_uniform(self) -> bool:
        """Whether the mask is laid on queries rather than on the heads' output."""
        return self.mode == "uniform"

    def silence(self, layer: int, output: Tensor, head_size: int) -> None:
        """Replace the masked heads' output.

        Args:
            layer: Index of the layer.
            output: What goes into the output projection, `[..., heads × head_size]`, every rank's heads.
            head_size: Of a head's output.
        """
        rows = output.unflatten(-1, (-1, head_size))
        for head in self.heads[layer]:
            if self.mode == "mean":
                mean = _references[self.reference][layer].mean
                rows[..., head, :] = mean.unflatten(-1, (-1, head_size))[head].to(rows.dtype)
            else:
                rows[..., head, :] = 0

    def flatten(self, layer: int, queries: Tensor) -> None:
        """Make the masked heads attend to every token alike, from the prompt's last token on.

        A query of zeros scores every key 0. The prompt's last token is where the paper's code starts to decode.

        Args:
            layer: Index of the layer.
            queries: `[tokens of this step, heads, head_size]`, this rank's heads.
        """
        from nnsight.intervention.interleaver import Mediator
        from vllm.distributed import get_tensor_model_parallel_rank

        row = Mediator.current(EDIT).row
        position = int(runner().input_batch.num_computed_tokens_cpu[row])
        rows = queries[max(0, self.prompt_tokens - 1 - position) :]
        heads_here = rows.shape[-2]
        for head in self.heads[layer]:
            if head // heads_here == get_tensor_model_parallel_rank():
                rows[:, head % heads_here] = 0


def add_reference(layers: int, layer: int, output: Tensor) -> None:
    """Add this step's tokens of a reference text to a layer's sum.

    Args:
        layers: How many layers can be masked.
        layer: Index of this one.
        output: What goes into its output projection, `[..., heads × head_size]`, every rank's heads.
    """
    rows = output.reshape(-1, output.shape[-1])
    name = _argument(REFERENCE_EDIT)["reference"]
    if name not in _references:
        zeros = torch.zeros(rows.shape[-1], dtype=torch.float32, device=rows.device)
        _references[name] = [Reference(zeros.clone()) for _ in range(layers)]
    sums = _references[name][layer]
    sums.total += rows.sum(0, dtype=torch.float32)
    sums.tokens += len(rows)


def _argument(edit: str) -> Fields:
    from nnsight.intervention.interleaver import Mediator

    name: str = runner().input_batch.req_ids[Mediator.current(edit).row]
    fields: Fields = runner().requests[name].sampling_params.extra_args[ARGUMENT]
    return fields
