"""What `p-eagle-cuda generate` does: continue prompts with and without speculation."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from p_eagle_cuda import ops
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.draft_length import DraftLengthPolicy
from p_eagle_cuda.draft_tree import TREE_KINDS, DraftTree, TreeKind
from p_eagle_cuda.drafter import Drafter
from p_eagle_cuda.drafter_pass import PASS_OPS
from p_eagle_cuda.engine import Completion, SpeculativeEngine, max_target_rows, num_blocks
from p_eagle_cuda.errors import ConfigError, PromptError
from p_eagle_cuda.fields import ConfigFields
from p_eagle_cuda.kv_cache import allocate_cache
from p_eagle_cuda.precision import kv_cache_dtype
from p_eagle_cuda.statistics import (
    Acceptance,
    acceptance,
    before_loop,
    nodes_per_step,
    rank_accuracies,
)
from p_eagle_cuda.target import Target, TargetConfig
from p_eagle_cuda.text import encode_prompt, load_tokenizer
from p_eagle_cuda.tree import MAX_NODES
from p_eagle_cuda.weights import load_drafter_weights

MAX_SPECULATIVE_TOKENS = 32  # mask rows past that only cost: no published drafter reaches 20
BLOCK_SIZE = 16
TOP_K = 8  # entries of each depth that a tree can have; twice as many bring next to nothing
DEFAULT_NODES = 16  # of a tree that is no chain


@dataclass(frozen=True)
class Decoded:
    """What `Generator.decode` makes of the prompts.

    Attributes:
        completions: Of each prompt.
        tokens_per_s: New tokens per second of wall-clock time on this machine, decoding alone.
    """

    completions: list[Completion]
    tokens_per_s: float

    def acceptance(self, num_speculative_tokens: int) -> Acceptance:
        """Over all verification steps."""
        steps = (step for c in self.completions for step in c.steps)
        return acceptance(steps, num_speculative_tokens)

    def acceptance_not_looping(self, num_speculative_tokens: int) -> Acceptance:
        """Over those before each text began to loop, see `statistics.loop_start`."""
        steps = (step for c in self.completions for step in before_loop(c.token_ids, c.steps))
        return acceptance(steps, num_speculative_tokens)


@dataclass(frozen=True)
class Report:
    """What a run measured. Times are wall-clock seconds on this machine, decoding alone.

    Attributes:
        tree: "chain", "static" or "dynamic", what was drafted.
        nodes_per_step: Mean rows that the target verifies in a step, None without any step.
        acceptance: Over all verification steps.
        acceptance_not_looping: Over those before each text began to loop, see
            `statistics.loop_start`; a weak target that repeats itself is easy to draft for.
        chain_acceptance_length: What a chain of K drafts gets of the same prompts; None if the
            tree is a chain.
        break_even: How many times the cost of verifying a chain's K + 1 nodes the verification of
            this tree's may cost before the tree is slower: the quotient of the acceptance lengths.
            The time of drafting, which is the same for both, is left out; it only helps the tree.
        target_steps: Target passes that emitted tokens, summed over the prompts. Plain decoding
            takes one for each token.
        outputs: New tokens of each prompt.
        texts: The same as text.
        lossless: Whether every output equals that of the target alone, token for token.
        first_difference: (prompt, token) where it does not, or None.
        tokens_per_s: New tokens per second with the drafter.
        tokens_per_s_plain: The same without.
    """

    tree: TreeKind
    nodes_per_step: float | None
    acceptance: Acceptance
    acceptance_not_looping: Acceptance
    chain_acceptance_length: float | None
    break_even: float | None
    target_steps: int
    outputs: list[list[int]]
    texts: list[str]
    lossless: bool
    first_difference: tuple[int, int] | None
    tokens_per_s: float
    tokens_per_s_plain: float

    def as_json(self) -> dict[str, Any]:
        """The report as one flat JSON object."""
        values = asdict(self)
        overall, early = values.pop("acceptance"), values.pop("acceptance_not_looping")
        return {
            "acceptance_length": overall["length"],
            "per_position": overall["per_position"],
            "acceptance_length_not_looping": early["length"],
            "per_position_not_looping": early["per_position"],
            **values,
        }


class Generator:
    """A target, a drafter and a tokenizer, checked to fit each other.

    Attributes:
        top_k: Entries of each depth that the drafter gives: 8, or its whole vocabulary.
        notes: What is not wrong but will disappoint, one sentence each.
    """

    def __init__(
        self,
        target: str | Path,
        drafter: str | Path,
        *,
        num_speculative_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        weights: str = "auto",
        kv_dtype: str | torch.dtype = "auto",
    ) -> None:
        """Load both models.

        Args:
            target: Folder of a Hugging Face Llama-type model with tokenizer.json.
            drafter: Folder of a P-EAGLE drafter for it.
            num_speculative_tokens: K, 1 to 32.
            dtype: Working dtype of both.
            device: Of both.
            weights: Precision of the drafter's matrices, as for `Drafter.from_pretrained`.
            kv_dtype: Of the drafter's cache, likewise.

        Raises:
            PEagleError: Something is missing, malformed, not supported, or does not fit.
        """
        K = num_speculative_tokens
        check_k(K)
        if device == "cuda":
            _check_cuda()
        target_config = TargetConfig.from_pretrained(target)
        self.drafter_config = DrafterConfig.from_pretrained(drafter)
        _check_pair(target_config, self.drafter_config)
        self.tokenizer: Tokenizer = load_tokenizer(target)
        self.target = Target.from_pretrained(
            target, tap_layer_ids=self.drafter_config.taps(target_config.num_layers), dtype=dtype,
            device=device,
        )  # fmt: skip
        # Requests may reach the target's last position, whatever context the drafter names.
        self._drafter_weights = load_drafter_weights(
            drafter, self.drafter_config, dtype=dtype, device=device,
            target_embedding=self.target.embedding, target_lm_head=self.target.lm_head,
            max_position=target_config.max_position_embeddings, precision=weights,
        )  # fmt: skip
        self._kv_dtype = kv_cache_dtype(kv_dtype, dtype)
        self.num_speculative_tokens = K
        self.top_k = min(TOP_K, self.drafter_config.draft_vocab_size)
        self.notes = _notes(Path(target), Path(drafter), self.drafter_config, K)

    def encode(self, prompts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Token ids of each prompt.

        Raises:
            PromptError: A prompt is too long for the context together with `max_tokens`.
        """
        context = self.target.config.max_position_embeddings
        ids = [encode_prompt(self.tokenizer, p, self.target.config.bos_token_id) for p in prompts]
        for i, prompt in enumerate(ids):
            if len(prompt) + max_tokens > context:
                raise PromptError(
                    f"prompt {i} has {len(prompt)} tokens; with {max_tokens} new ones that exceeds "
                    f"the target's context of {context}"
                )
        return ids

    def decode(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int,
        *,
        tree: DraftTree | None,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 8,
        dynamic_k: bool = False,
        on_tokens: Callable[[int, list[int]], None] | None = None,
        on_finish: Callable[[int], None] | None = None,
    ) -> Decoded:
        """Continue every prompt.

        Args:
            prompts: Token ids of each, from `encode`.
            max_tokens: Most new tokens of each.
            tree: What is drafted, of 8 entries for each of K depths; None: nothing.
            temperature: 0 for greedy decoding.
            seed: Of the random numbers.
            batch_size: Requests in flight.
            dynamic_k: Draft fewer than K tokens where a `DraftLengthPolicy` expects that to pay;
                `tree` must be the chain of K.
            on_tokens: Called with a prompt's index and new tokens.
            on_finish: Called when a request ends.

        Raises:
            PEagleError: The drafter cannot fill the tree, or the target computes NaN.
        """
        lanes = min(batch_size, len(prompts))
        length = max(map(len, prompts)) + max_tokens
        options: dict[str, Any] = {
            "max_requests": lanes, "max_length": length, "block_size": BLOCK_SIZE
        }  # fmt: skip
        drafter = None
        if tree:
            drafter = self._drafter(lanes, length, tree.num_nodes)
            if dynamic_k:
                options["draft_length"] = DraftLengthPolicy(self.num_speculative_tokens)
            else:
                options["tree"] = tree
        engine = SpeculativeEngine(self.target, drafter, **options)
        engine.generate(prompts[:1], 1)  # the first pass pays for what PyTorch sets up lazily
        showing = 0.0

        def show(index: int, tokens: list[int]) -> None:
            nonlocal showing
            if on_tokens:
                began = time.perf_counter()
                on_tokens(index, tokens)
                showing += time.perf_counter() - began

        start = time.perf_counter()
        completions = engine.generate(
            prompts, max_tokens, temperature=temperature, seed=seed,
            stop=self.target.config.eos_token_ids, on_tokens=show, on_finish=on_finish,
        )  # fmt: skip
        seconds = time.perf_counter() - start - showing
        return Decoded(completions, sum(len(c.token_ids) for c in completions) / seconds)

    def _drafter(self, lanes: int, length: int, num_nodes: int) -> Drafter:
        K, config = self.num_speculative_tokens, self.drafter_config
        blocks = num_blocks(lanes, length, max(K, num_nodes - 1), BLOCK_SIZE)
        caches = allocate_cache(
            config.num_layers, blocks, config.num_kv_heads, BLOCK_SIZE, config.head_dim,
            self._kv_dtype, self.target.device,
        )  # fmt: skip
        return Drafter(
            config, self._drafter_weights, caches, num_speculative_tokens=K, max_requests=lanes,
            max_target_rows=max_target_rows(lanes, K), top_k=self.top_k,
        )  # fmt: skip

    def accuracies(self, decoded: Decoded) -> list[list[float]]:
        """How often each entry of the drafter was right, for `DraftTree.static`."""
        steps = (step for c in decoded.completions for step in c.steps)
        return rank_accuracies(steps, self.num_speculative_tokens, self.top_k)

    def run(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int,
        *,
        tree: TreeKind = "chain",
        num_nodes: int | None = None,
        dynamic_k: bool = False,
        on_tokens: Callable[[int, list[int]], None] | None = None,
        on_finish: Callable[[int], None] | None = None,
        **options: Any,  # noqa: ANN401 - `decode` has their types
    ) -> Report:
        """Continue every prompt with the drafter, then without, and compare.

        Args:
            prompts: Token ids of each, from `encode`.
            max_tokens: Most new tokens of each.
            tree: "chain"; or after a run with a chain, to compare with: "static", the shape that
                is the best by the accuracies of that run; "dynamic", the most likely nodes.
            num_nodes: N, the most nodes of a request in a step, the last known token included: 2
                to 64, of a chain to K + 1. K + 1 for a chain, and 16 for a tree, if None.
            dynamic_k: Draft fewer than K tokens where a `DraftLengthPolicy` expects that to pay.
            on_tokens: Called with a prompt's index and new tokens, in the run that is reported.
            on_finish: Called when a request ends, in each of `num_runs(tree)` runs.
            options: Further ones of `decode`: `temperature`, `seed`, `batch_size`.

        Raises:
            ConfigError: `num_nodes` is out of range, or the options contradict each other.
        """
        K = self.num_speculative_tokens
        check_tree(tree, num_nodes, K, dynamic_k)
        options["on_finish"] = on_finish
        chain_length = None
        if tree == "chain":
            made = DraftTree.chain(K if num_nodes is None else num_nodes - 1)
        else:
            num_nodes = DEFAULT_NODES if num_nodes is None else num_nodes
            chain = self.decode(prompts, max_tokens, tree=DraftTree.chain(K), **options)
            chain_length = chain.acceptance(K).length
            made = (
                DraftTree.dynamic(num_nodes) if tree == "dynamic"
                else DraftTree.static(self.accuracies(chain), num_nodes)
            )  # fmt: skip
        drafted = self.decode(
            prompts, max_tokens, tree=made, dynamic_k=dynamic_k, on_tokens=on_tokens, **options
        )
        plain = self.decode(prompts, max_tokens, tree=None, **options)

        outputs = [c.token_ids for c in drafted.completions]
        difference = _first_difference(outputs, [c.token_ids for c in plain.completions])
        overall = drafted.acceptance(K)
        steps = [step for c in drafted.completions for step in c.steps]
        return Report(
            tree=tree,
            nodes_per_step=nodes_per_step(steps),
            acceptance=overall,
            acceptance_not_looping=drafted.acceptance_not_looping(K),
            chain_acceptance_length=chain_length,
            break_even=overall.length / chain_length if overall.length and chain_length else None,
            target_steps=len(steps),
            outputs=outputs,
            texts=[self.tokenizer.decode(ids) for ids in outputs],
            lossless=difference is None,
            first_difference=difference,
            tokens_per_s=drafted.tokens_per_s,
            tokens_per_s_plain=plain.tokens_per_s,
        )


def check_k(num_speculative_tokens: int) -> None:
    """Raise ConfigError unless K is one that a `Generator` drafts."""
    if not 1 <= num_speculative_tokens <= MAX_SPECULATIVE_TOKENS:
        raise ConfigError(f"k must be 1 to {MAX_SPECULATIVE_TOKENS}, got {num_speculative_tokens}")


def check_tree(
    tree: TreeKind, num_nodes: int | None, num_speculative_tokens: int, dynamic_k: bool = False
) -> None:
    """Raise ConfigError unless `Generator.run` can draft like this."""
    if tree not in TREE_KINDS:
        raise ConfigError(f"a tree must be one of {', '.join(TREE_KINDS)}, got {tree!r}")
    most = num_speculative_tokens + 1 if tree == "chain" else MAX_NODES
    if num_nodes is not None and not 2 <= num_nodes <= most:
        what = "chain of k drafts" if tree == "chain" else f"{tree} tree"
        raise ConfigError(
            f"the nodes of a {what}, with the token before them, must be 2 to {most}, "
            f"got {num_nodes}"
        )
    if dynamic_k and (tree != "chain" or num_nodes is not None):
        raise ConfigError(
            "a dynamic k chooses the length of a chain: it goes with no other tree, and with no "
            "number of nodes"
        )


def num_runs(tree: TreeKind) -> int:
    """How often `Generator.run` continues each prompt: with a chain, with the tree, and plainly."""
    return 2 if tree == "chain" else 3


def _check_cuda() -> None:
    if not torch.cuda.is_available():
        raise ConfigError("this PyTorch sees no CUDA device")
    built = ops.implementations()
    needed = (*PASS_OPS, "build_tree", "verify", "compact_cache")
    missing = [name for name in needed if not built[name]["cuda"]]
    if missing:
        raise ConfigError(f"this build has no CUDA kernels for {', '.join(missing)}")


def _notes(target: Path, drafter: Path, config: DrafterConfig, k: int) -> list[str]:
    notes = []
    if config.num_speculative_tokens is not None and k > config.num_speculative_tokens:
        notes.append(
            f"the drafter was trained for {config.num_speculative_tokens} tokens a step, positions "
            "past that are rarely accepted"
        )
    tied_to = ConfigFields.read(drafter).string("target_sha256", "")
    weights = target / "model.safetensors"
    if tied_to and weights.is_file():
        found = hashlib.sha256(weights.read_bytes()).hexdigest()
        if found != tied_to:
            notes.append(
                f"the drafter was trained for the target with sha256 {tied_to[:12]}, this one has "
                f"{found[:12]}"
            )
    return notes


def _check_pair(target: TargetConfig, drafter: DrafterConfig) -> None:
    if drafter.target_hidden_size != target.hidden_size:
        raise ConfigError(
            f"the drafter reads hidden states of width {drafter.target_hidden_size}, the target's "
            f"are {target.hidden_size} wide"
        )
    if drafter.vocab_size < target.vocab_size:
        raise ConfigError(
            f"the drafter knows {drafter.vocab_size} tokens, the target {target.vocab_size}"
        )
    drafter.taps(target.num_layers)


def _first_difference(
    outputs: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]
) -> tuple[int, int] | None:
    for i, (a, b) in enumerate(zip(outputs, expected, strict=True)):
        if list(a) != list(b):
            same = next((j for j, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
            return i, min(len(a), len(b)) if same is None else same
    return None
