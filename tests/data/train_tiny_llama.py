"""Train the sample checkpoint `tests/data/tiny-llama`.

A byte-level Llama (8 layers, grouped-query attention, 0.86 million parameters) is trained from scratch in float32 on
the repository's LICENSE file and saved in bfloat16 as two safetensors shards. It learns that one text nearly by heart,
so in every matrix some singular values stand clear of those a random matrix would have, by amounts that differ
between layers.

    python tests/data/train_tiny_llama.py [OUTPUT_DIR]    # default: the committed directory

Takes about a minute and a half on two idle CPU cores. Seed, thread count (two) and algorithms are fixed, so two runs
on one machine with one torch build write identical bytes; other builds or processors may differ in the last bits.
"""

import math
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

DATA_DIR = Path(__file__).resolve().parent
TRAINING_TEXT = DATA_DIR.parents[1] / "LICENSE"

SEED = 0
NUM_THREADS = 2  # The order of floating-point sums depends on it.

NUM_STEPS = 600
WARMUP_STEPS = 50
BATCH_SIZE = 16
CONTEXT_LENGTH = 128
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0
LOG_EVERY = 50


def build_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=256,  # One token per byte, so no tokenizer is needed.
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def learning_rate_factor(step: int) -> float:
    """Linear warm-up, then cosine decay to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1.0 + math.cos(math.pi * (step - WARMUP_STEPS) / (NUM_STEPS - WARMUP_STEPS)))


def train(model: LlamaForCausalLM, tokens: torch.Tensor) -> None:
    # Norm gains start at one and are not to be pulled to zero: only the matrices decay.
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    gains = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}],
        lr=PEAK_LEARNING_RATE,
        betas=(0.9, 0.95),
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    windows = tokens.unfold(0, CONTEXT_LENGTH, 1)

    model.train()
    for step in range(NUM_STEPS):
        batch = windows[torch.randint(len(windows), (BATCH_SIZE,))]
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        scheduler.step()
        if step % LOG_EVERY == 0 or step == NUM_STEPS - 1:
            print(f"step {step:4d}  loss {loss.item():.4f} nats per byte", flush=True)


def save(model: LlamaForCausalLM, output_dir: Path) -> None:
    # A little over half of the 1.7 MB of weights, so that they make exactly two shards.
    model.bfloat16().save_pretrained(output_dir, max_shard_size="900KB")
    # Nothing generates text from this model.
    (output_dir / "generation_config.json").unlink(missing_ok=True)


def main() -> None:
    output_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA_DIR / "tiny-llama"
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(NUM_THREADS)
    torch.manual_seed(SEED)

    tokens = torch.tensor(list(TRAINING_TEXT.read_bytes()))
    model = build_model()
    train(model, tokens)
    save(model, output_dir)


if __name__ == "__main__":
    main()
