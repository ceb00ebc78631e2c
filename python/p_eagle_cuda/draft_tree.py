"""Which tree the engine makes of what a drafter gives for each of K positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from p_eagle_cuda.drafter_pass import Drafts
from p_eagle_cuda.errors import ConfigError
from p_eagle_cuda.ops import build_tree
from p_eagle_cuda.tree import MAX_NODES, Topology, Tree, best_paths, chain, topology

TreeKind = Literal["chain", "static", "dynamic"]
TREE_KINDS: tuple[TreeKind, ...] = ("chain", "static", "dynamic")


@dataclass(frozen=True)
class DraftTree:
    """How drafts become a tree; made by `chain`, `static` or `dynamic`.

    Attributes:
        num_nodes: N, the most nodes of a request's tree: drafts and the last known token, which is
            the root. As many rows does the target verify for a request in a step.
        shape: The nodes that there are, the same for all; None: the best of each request.
        off_spine_discount: Without a shape, see `ops.build_tree`.
    """

    num_nodes: int
    shape: Topology | None = None
    off_spine_discount: float = 1.0

    def __post_init__(self) -> None:
        if not 2 <= self.num_nodes <= MAX_NODES:
            raise ConfigError(
                f"a tree must have 2 to {MAX_NODES} nodes, its root included, got {self.num_nodes}"
            )
        if not 0 < self.off_spine_discount <= 1:
            raise ConfigError(
                f"off_spine_discount must be above 0 and at most 1, got {self.off_spine_discount}"
            )

    @classmethod
    def chain(cls, num_drafts: int) -> DraftTree:
        """The most likely draft of each position, as speculative decoding has it without trees.

        Raises:
            ConfigError: `num_drafts` is not 1 to 63.
        """
        return cls(num_drafts + 1, chain(num_drafts))

    @classmethod
    def static(cls, accuracies: Sequence[Sequence[float]], num_nodes: int) -> DraftTree:
        """The shape that accepts the most tokens in the mean, where depths are independent.

        Args:
            accuracies: Of a depth and rank, see `tree.best_paths`; `statistics.rank_accuracies`
                measures them.
            num_nodes: 2 to 64. There are fewer where no more have a chance.

        Raises:
            ConfigError: `num_nodes` is out of range.
            ValueError: The accuracies are not shares.
        """
        shape = topology(best_paths(accuracies, min(num_nodes, MAX_NODES) - 1))
        return cls(num_nodes, shape)

    @classmethod
    def dynamic(cls, num_nodes: int, off_spine_discount: float = 1.0) -> DraftTree:
        """The nodes that are the most likely by the drafter's own probabilities, of each request.

        Args:
            num_nodes: 2 to 64.
            off_spine_discount: In (0, 1]; what the value of a node is multiplied by for each step
                from a node that is not the best of its depth, or descends from one.

        Raises:
            ConfigError: An argument is out of range.
        """
        return cls(num_nodes, None, off_spine_discount)

    def check_fits(self, num_speculative_tokens: int, top_k: int) -> None:
        """Raise ConfigError unless a drafter with these K and top_k can fill the shape."""
        if self.shape is None:
            return
        depths: list[int] = []
        for parent in self.shape.parents.tolist():
            depths.append(0 if parent < 0 else depths[parent] + 1)
        for name, needed, given in (
            ("num_speculative_tokens", max(depths), num_speculative_tokens),
            ("top_k", int(self.shape.ranks.max()) + 1, top_k),
        ):
            if needed > given:
                raise ConfigError(
                    f"the shape of the draft tree needs a drafter with {name} {needed} or more, "
                    f"got {given}"
                )

    def build(
        self,
        drafts: Drafts,
        root_tokens: Tensor,
        root_positions: Tensor,
        budgets: Tensor,
        vocab_size: int,
        max_position: int,
    ) -> Tree:
        """The trees of a batch.

        Args:
            drafts: What a pass of the drafter gave.
            root_tokens: ``[B]`` int64, the last known token of each request.
            root_positions: ``[B]`` int64, where that is.
            budgets: ``[B]`` int32, the most nodes of each request if fewer than N; 0: no tree.
            vocab_size: Of the target. There is no draft of a token that it does not know.
            max_position: The first position of the target that is out of bounds; nor of one there.
        """
        depths = torch.arange(1, drafts.top_ids.shape[1] + 1, device=root_positions.device)
        is_out = root_positions[:, None] + depths >= max_position
        shape = self.shape and Topology(*(x.to(root_tokens.device) for x in self.shape))
        return build_tree(
            drafts.top_ids.masked_fill(is_out[..., None], -1).flatten(0, 1),
            drafts.top_logits.flatten(0, 1), drafts.lse.flatten(), root_tokens, root_positions,
            self.num_nodes, vocab_size, shape, budgets=budgets,
            off_spine_discount=self.off_spine_discount,
        )  # fmt: skip
