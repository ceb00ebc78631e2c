"""The training: rows and mask, optimiser, corpus, models, what is exported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import AutoTokenizer, LlamaForCausalLM

from p_eagle_cuda.drafter import Drafter
from p_eagle_cuda.engine import SpeculativeEngine, max_target_rows, num_blocks
from p_eagle_cuda.statistics import Step
from p_eagle_cuda.target import Target
from p_eagle_cuda.train import checkpointing, cod, continuations, corpus, drafter, export, model
from p_eagle_cuda.train.muon import Muon, orthogonalise
from p_eagle_cuda.train.tokenizer import END_OF_TEXT_ID, MASK_ID, load_tokenizer
from toy_training import (
    CONTINUATIONS,
    SHAPE,
    random_drafter,
    random_target,
)

pytest_plugins = ["toy_training_fixtures"]


# Rows and mask


@pytest.mark.parametrize(("anchors", "depths", "rate"), [(255, 8, 0.8), (9, 8, 0.8), (40, 3, 0.5)])
def test_rows_are_nested_and_shrink_by_the_rate(anchors: int, depths: int, rate: float) -> None:
    a, d = cod.sample_rows(anchors, depths, rate, torch.Generator().manual_seed(1))
    by_depth = [set(a[d == depth].tolist()) for depth in range(depths)]
    assert by_depth[0] == set(range(anchors))
    assert a[d == 0].tolist() == list(range(anchors))
    for depth in range(1, depths):
        assert by_depth[depth] <= by_depth[depth - 1]
        possible = min(int(anchors * rate**depth), anchors - depth)
        assert len(by_depth[depth]) <= possible
        assert len(by_depth[depth]) >= possible - depth  # those dropped at the end of the text
    assert len(a) == sum(map(len, by_depth)), "a row occurs twice"
    assert int((a + d).max()) + 1 <= anchors, "a label lies behind the text"


def test_rows_differ_between_steps() -> None:
    rows = [
        cod.sample_rows(50, 4, 0.8, checkpointing.generator_for(0, "drafter", step))[0].tolist()
        for step in (0, 1, 0)
    ]
    assert rows[0] == rows[2]
    assert rows[0] != rows[1]


def test_mask_is_the_papers() -> None:
    anchors, depths = cod.sample_rows(12, 5, 0.8, torch.Generator().manual_seed(2))
    mask = cod.visible(anchors, depths)
    for q, (qa, qd) in enumerate(zip(anchors.tolist(), depths.tolist(), strict=True)):
        for k, (ka, kd) in enumerate(zip(anchors.tolist(), depths.tolist(), strict=True)):
            real_up_to_the_anchor = kd == 0 and ka <= qa
            own_rollout = kd > 0 and ka == qa and kd <= qd
            assert bool(mask[q, k]) == (real_up_to_the_anchor or own_rollout), (qa, qd, ka, kd)


def test_packed_rows_equal_each_rollout_alone() -> None:
    """What the dense mask computes at once is what inference computes rollout by rollout."""
    made = random_drafter()
    length, depths = 14, 4
    text = torch.randint(MASK_ID, (1, length))
    taps = torch.randn(1, length, 3 * SHAPE.hidden_size, dtype=torch.float64)
    a, d = cod.sample_rows(length - 1, depths, 0.8, torch.Generator().manual_seed(3))
    packed = made(
        drafter.drafter_inputs(text, a, d), taps[:, : length - 1], a + d, cod.visible(a, d)
    )[0]
    compared = 0
    for anchor in range(length - 1):
        ids = torch.cat([text[:, 1 : anchor + 2], torch.full((1, depths - 1), MASK_ID)], 1)
        alone = made(ids, taps[:, : anchor + 1], torch.arange(anchor + depths), None)[0, anchor:]
        for row in (a == anchor).nonzero()[:, 0].tolist():
            torch.testing.assert_close(packed[row], alone[d[row]])
            compared += 1
    assert compared == len(a)


def test_rows_behind_a_foreign_token_are_left_out() -> None:
    text = torch.randint(5, (3, 20))
    argmax = torch.randint(5, (3, 20))
    argmax[:, :-1] = torch.where(torch.rand(3, 19) < 0.8, text[:, 1:], argmax[:, :-1])
    anchors, depths = cod.sample_rows(19, 5, 0.9, torch.Generator().manual_seed(4))
    found = cod.on_policy(text, argmax, anchors + depths, depths)
    for b in range(3):
        for row, (a, d) in enumerate(zip(anchors.tolist(), depths.tolist(), strict=True)):
            accepted = range(a + 2, a + d + 2)
            expected = all(text[b, i] == argmax[b, i - 1] for i in accepted)
            assert bool(found[b, row]) == expected, (b, a, d)
    assert 0 < int(found.sum()) < found.numel()


# Optimiser and tokenizer


def test_muon_takes_the_step_of_torch_muon() -> None:
    weights = [torch.randn(24, 16), torch.randn(16, 24), torch.randn(24, 16)]
    ours = [w.clone().requires_grad_() for w in weights]
    theirs = [w.clone().requires_grad_() for w in weights]
    mine = Muon(ours, lr=0.1, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b, w in zip(ours, theirs, weights, strict=True):
        change = (b - w).norm()
        assert (a - b).norm() < 0.02 * change, "more than torch's bfloat16 explains"


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, 20, 50)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_tokenizer_round_trip_and_hugging_face_agreement(trained: Path) -> None:
    text = 'def f(x):\n\n\n    return {"é": 1234, "\\t": x}  # 日本\n\tdone\r\n'
    tokenizer = load_tokenizer(trained / "tokenizer")
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < END_OF_TEXT_ID
    assert AutoTokenizer.from_pretrained(trained / "target")(text)["input_ids"] == ids
    assert tokenizer.token_to_id("<|endoftext|>") == END_OF_TEXT_ID
    assert tokenizer.token_to_id("<|mask|>") == MASK_ID


# Corpus


def test_no_held_out_module_is_trained_on(library: corpus.Corpus) -> None:
    assert not {s.group for s in library.training} & {s.group for s in library.held_out}
    size = [sum(len(s.text) for s in part) for part in (library.training, library.held_out)]
    assert 0.01 < size[1] / sum(size) < 0.1
    trained_on = "\n".join(source.text for source in library.training)
    prompts = corpus.held_out_prompts(library)
    assert len(prompts) >= 32
    assert len(set(prompts)) == len(prompts)
    for prompt in corpus.held_out_prompts(library, lines=6):
        assert prompt not in trained_on


def test_copies_of_held_out_text_are_dropped(tmp_path: Path) -> None:
    names = [f"module{i}" for i in range(1000)]
    held_out = next(name for name in names if corpus.is_held_out(name))
    copied, fresh, latin = [name for name in names if not corpus.is_held_out(name)][:3]
    text = "".join(f"value_{i} = {i}\n" for i in range(30))
    (tmp_path / f"{held_out}.py").write_text(text)
    (tmp_path / f"{copied}.py").write_text(text + "extra = 1\n")
    (tmp_path / f"{fresh}.py").write_text("".join(f"other_{i} = {i}\n" for i in range(30)))
    (tmp_path / f"{latin}.py").write_bytes(b"name = '\xe9'\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "check.py").write_text("checked = 1\n")
    found = corpus.load_corpus(tmp_path)
    assert [s.path for s in found.training] == [f"{fresh}.py"]
    assert [s.path for s in found.held_out] == [f"{held_out}.py"]
    assert found.skipped[f"{copied}.py"] == "repeats held-out text"
    assert "utf-8" in found.skipped[f"{latin}.py"]


def test_prompts_are_openings_of_functions_that_training_text_lacks() -> None:
    def function(name: str, lines: int) -> str:
        body = "".join(f"    {name}_{i} = {i}\n" for i in range(lines))
        return f"def {name}():\n{body}"

    unrelated = "".join(function(f"unrelated{i}", 9) for i in range(20))
    training = corpus.Source("a.py", "a", unrelated + function("copied", 9))
    held_out = corpus.Source(
        "b.py", "b", function("copied", 9) + function("short", 3) + function("own", 9)
    )
    prompts = corpus.held_out_prompts(corpus.Corpus([training], [held_out]), lines=3)
    assert prompts == ["def own():\n    own_0 = 0\n    own_1 = 1\n"]


def test_a_private_twin_goes_with_its_module() -> None:
    names = {"_pyio.py": "io", "_strptime.py": "strptime", "json/decoder.py": "json", "py.py": "py"}
    for path, group in names.items():
        assert corpus.module_group(Path(path)) == group


# Models and export


def test_exported_target_is_a_hugging_face_llama(trained: Path) -> None:
    ours = export.load_target(trained / "target", SHAPE)
    theirs = LlamaForCausalLM.from_pretrained(trained / "target", dtype=torch.float32)
    text = torch.randint(MASK_ID, (2, 50))
    with torch.no_grad():
        logits, taps = ours.run(text)
        expected = theirs(text, output_hidden_states=True)
    torch.testing.assert_close(logits, expected.logits)
    entering = torch.cat([expected.hidden_states[i] for i in SHAPE.tap_layers], -1)
    torch.testing.assert_close(taps, entering)


def test_exported_drafter_has_the_names_and_types_of_its_format(trained: Path) -> None:
    config = json.loads((trained / "drafter" / "config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3]
    assert config["ptd_token_id"] == MASK_ID
    assert config["draft_vocab_size"] == config["vocab_size"] == 512
    with safe_open(trained / "drafter" / "model.safetensors", "pt") as file:
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        types = {file.get_slice(name).get_dtype() for name in names}
    hidden = SHAPE.hidden_size
    assert types == {"BF16"}
    assert shapes["mask_hidden"] == (1, 1, 3 * hidden)
    assert shapes["fc.weight"] == (hidden, 3 * hidden)
    assert shapes["midlayer.self_attn.q_proj.weight"] == (64, 2 * hidden)
    assert shapes["midlayer.hidden_norm.weight"] == (hidden,)
    assert shapes["layers.3.self_attn.k_proj.weight"] == (32, hidden)
    assert "layers.1.hidden_norm.weight" not in shapes
    assert not any(name.startswith("layers.0.") for name in shapes)


def test_exported_drafter_computes_what_was_trained(trained: Path, tmp_path: Path) -> None:
    """In float64, against the package's own drafter, which shares no code with the training."""
    depths, length = 4, 12
    export.export_drafter(tmp_path, random_drafter(), trained / "target", depths)
    made = export.load_drafter(tmp_path, trained / "target", SHAPE).double()
    text = torch.randint(MASK_ID, (length + 1,))
    taps = torch.randn(length, 3 * SHAPE.hidden_size, dtype=torch.float64)
    ids = torch.cat([text[1:], torch.full((depths - 1,), MASK_ID)])
    expected = made(ids[None], taps[None], torch.arange(len(ids)), None)[0, length - 1 :]

    drafting = Drafter.from_pretrained(
        tmp_path,
        num_speculative_tokens=depths,
        max_requests=1,
        max_target_rows=length,
        num_blocks=2,
        dtype=torch.float64,
    )
    drafts = drafting.propose(
        text[:length],
        torch.arange(length),
        [tap.contiguous() for tap in taps.chunk(3, -1)],
        torch.tensor([0, length], dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32),
        text[length:],
        torch.arange(2, dtype=torch.int32)[None],
    )
    assert drafts.token_ids[0].tolist() == expected.argmax(-1).tolist()
    # The package keeps its table of angles in float32 too, but not bit for bit the same.
    torch.testing.assert_close(drafts.top_logits[0, :, 0], expected.amax(-1), rtol=1e-4, atol=1e-4)


def test_drafter_starts_with_what_its_target_knows() -> None:
    target, made = random_target(), model.Drafter(SHAPE)
    drafter.start_from_target(made, target, torch.Generator().manual_seed(0))
    assert torch.equal(made.embed_tokens.weight, target.embed_tokens.weight)
    assert torch.equal(made.lm_head.weight, target.embed_tokens.weight)
    for mine, theirs in (("1", 1), ("2", 2), ("3", 3)):
        copied, original = made.layers[mine].state_dict(), target.layers[theirs].state_dict()
        assert all(torch.equal(copied[name], original[name]) for name in original)


def test_cached_decoding_is_greedy_decoding() -> None:
    target = random_target()
    prompts = torch.randint(MASK_ID, (3, 5))
    recipe = replace(CONTINUATIONS, length=20)
    found = continuations.continue_text(target, prompts, recipe, None)
    text = prompts
    while text.shape[1] < 20:
        text = torch.cat([text, target(text)[:, -1].argmax(-1)[:, None]], 1)
    assert torch.equal(found, text)


def test_repetition_is_found_at_the_end_of_a_text() -> None:
    fresh = torch.arange(40)
    looping = torch.cat([torch.arange(16), torch.arange(100, 106).repeat(4)])
    slow = torch.cat([torch.arange(4), torch.arange(100, 118), torch.arange(100, 118)])
    short = torch.cat([torch.arange(30), torch.arange(100, 105).repeat(2)])
    over = torch.cat([torch.arange(100, 106).repeat(6), torch.arange(4)])
    for text, tail in ((fresh, 0), (looping, 16), (slow, 18), (short, 0), (over, 0)):
        assert continuations.repeated_tail(text[None]).tolist() == [tail]
    both = torch.stack([fresh, looping])
    assert continuations.repeated_tail(both).tolist() == [0, 16]


class Parrot(model.Target):
    """A target that prefers token 7, whatever it reads."""

    def forward(self, ids: Tensor, cache: model.KvCache | None = None) -> Tensor:
        return torch.zeros(*ids.shape, SHAPE.vocab_size).index_fill(-1, torch.tensor(7), 1.0)


def test_a_looping_text_branches_and_no_other() -> None:
    prompts = torch.arange(100, 104).expand(8, 4)
    recipe = replace(CONTINUATIONS, length=40, branch_rate=0.0, loop_branch_rate=1.0)
    generator = torch.Generator().manual_seed(0)
    greedy = continuations.continue_text(Parrot(SHAPE), prompts, recipe, None)
    assert (greedy[:, 4:] == 7).all()
    branched = continuations.continue_text(Parrot(SHAPE), prompts, recipe, generator)
    assert (branched[:, 4 : 4 + 17] == 7).all(), "16 repetitions of one token are not yet there"
    assert (branched[:, 4 + 17] != 7).any()
    never = replace(recipe, loop_branch_rate=0.0)
    assert torch.equal(
        continuations.continue_text(Parrot(SHAPE), prompts, never, generator), greedy
    )


def test_estimated_acceptance_is_that_of_speculative_decoding(trained: Path) -> None:
    """The walk over one dense pass against drafting and verifying token by token."""
    target = export.load_target(trained / "target", SHAPE)
    made = export.load_drafter(trained / "drafter", trained / "target", SHAPE)
    prompt, length, drafted = 6, 60, 3
    recipe = replace(CONTINUATIONS, length=length)
    text = continuations.continue_text(target, torch.randint(MASK_ID, (4, prompt)), recipe, None)
    found = drafter.replay(made, target, text, drafted, prompt)

    expected = []
    for ids in text:
        known = prompt + 1
        steps = []
        while known <= length - drafted:
            taps = target.run(ids[None, :known])[1][:, : known - 1]
            rows = torch.cat([ids[1:known], torch.full((drafted - 1,), MASK_ID)])
            logits = made(rows[None], taps, torch.arange(len(rows)), None)[0, known - 2 :]
            right = (logits.argmax(-1) == ids[known : known + drafted]).long().cumprod(0)
            steps.append(Step(known - prompt, drafted, int(right.sum())))
            known += steps[-1].num_accepted + 1
        expected.append(steps)
    assert found == expected
    accepted = {step.num_accepted for steps in found for step in steps}
    assert len(accepted) > 1, "a drafter that is always wrong or always right proves nothing"


class Guesser(model.Drafter):
    """Knows that tokens count up with the position, and errs in a pattern of its own."""

    def forward(self, ids: Tensor, taps: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        wrong = (positions * 5 + (ids == MASK_ID) * positions % 2) % 3 == 0
        return F.one_hot(positions + 2 + wrong.long(), SHAPE.vocab_size).float()


def test_only_leading_drafts_count() -> None:
    text = torch.arange(50).expand(2, 50)
    prompt, drafted = 4, 4
    found = drafter.replay(Guesser(SHAPE), random_target(), text, drafted, prompt)
    steps, anchor = [], prompt - 1
    later = 0
    while anchor + drafted + 1 < 50:
        positions = [anchor + depth for depth in range(drafted)]
        right = [(p * 5 + (p % 2 if depth else 0)) % 3 != 0 for depth, p in enumerate(positions)]
        leading = [*right, False].index(False)
        later += sum(right) > leading
        steps.append(Step(anchor + 2 - prompt, drafted, leading))
        anchor += leading + 1
    assert later, "no draft was right behind a wrong one"
    assert found == [steps, steps]


def test_estimated_acceptance_is_the_engines(trained: Path) -> None:
    """The models of the training, and those of the package that load what it exported."""
    target = export.load_target(trained / "target", SHAPE)
    made = export.load_drafter(trained / "drafter", trained / "target", SHAPE)
    prompt, length, drafted = 6, 60, 3
    recipe = replace(CONTINUATIONS, length=length)
    prompts = torch.randint(MASK_ID, (4, prompt))
    text = continuations.continue_text(target, prompts, recipe, None)
    found = drafter.replay(made, target, text, drafted, prompt)

    drafting = Drafter.from_pretrained(
        trained / "drafter",
        num_speculative_tokens=drafted,
        max_requests=4,
        max_target_rows=max_target_rows(4, drafted),
        num_blocks=num_blocks(4, length, drafted, 16),
        dtype=torch.float32,
    )
    writing = Target.from_pretrained(
        trained / "target", tap_layer_ids=SHAPE.tap_layers, dtype=torch.float32
    )
    engine = SpeculativeEngine(writing, drafting, max_requests=4, max_length=length)
    completions = engine.generate(prompts.tolist(), length - prompt)
    for ids, steps, completion in zip(text, found, completions, strict=True):
        assert completion.token_ids == ids[prompt:].tolist()
        verified = [replace(step, ranks=()) for step in completion.steps if step.num_drafts]
        assert verified[: len(steps)] == steps
