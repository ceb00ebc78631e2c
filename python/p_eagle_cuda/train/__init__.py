"""Train the bundled target and its P-EAGLE drafter: `python -m p_eagle_cuda.train all --out DIR`.

The stages, in the order in which each needs the one before:

1. `tokenizer`: byte-level BPE on the source text of the Python standard library (`corpus.py`).
2. `target`: a small Llama on the same text (`model.py`, `target.py`).
3. `continuations`: what that target writes itself, the text the drafter has to predict.
4. `drafter`: a four-layer P-EAGLE drafter with the paper's recipe (`cod.py`, `drafter.py`).

Both models end as Hugging Face folders in bfloat16 (`export.py`); what comes after a model sees its
rounded weights, widened to float32. All arithmetic is float32: CPUs without bfloat16 instructions
are slower with it, and one kind of arithmetic gives one result.

Every random choice is a function of (seed, stage, step), so a stage that was killed and resumed
ends with the same bits as one that was not, given the same interpreter, torch and thread count.
"""
